"""Read UTF-8 text files; other content is refused with its actual type."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from mclst.sections.errors import SectionError

BLOCK_BYTES = 1 << 20
MAX_LIST_BYTES = 64 << 20  # a gene list of 100,000 rows takes 10 MB
MAX_UNPACKED_BYTES = 1 << 30  # counts of 5,000 spots and 36,000 genes take 400 MB
MAGIC = {
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the table as .csv",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the table as .csv",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}
ENCODING = "utf-8-sig"


def read_text(path: Path, *, may_be_gzip: bool = False, max_unpacked: int = MAX_UNPACKED_BYTES) -> str:
    """Read a UTF-8 file without its byte-order mark.

    Raises SectionError if it cannot be read, is empty, holds NUL, is not UTF-8 (the line is named), or
    unpacks to more than `max_unpacked` bytes."""
    try:
        raw = path.read_bytes()
        if may_be_gzip and raw[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as unpacked:
                raw = unpacked.read(max_unpacked + 1)
            if len(raw) > max_unpacked:
                raise SectionError(
                    f"{path}: the file unpacks to more than {max_unpacked >> 20:,} MB; unpack it first"
                )
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    _check(path, [raw])
    return raw.decode(ENCODING)


def read_lines(path: Path) -> Iterator[str]:
    """Yield a UTF-8 file's lines with their ends ("\\n", "\\r" or "\\r\\n"), one in memory at a time.

    The whole file is checked first; raises SectionError as `read_text` does.
    """
    try:
        with path.open("rb") as file:
            _check(path, iter(lambda: file.read(BLOCK_BYTES), b""))
        with path.open(encoding=ENCODING, newline="") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise SectionError(
            f"{path} changed while it was being read; run again once it is complete"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _check(path: Path, blocks: Iterable[bytes]) -> None:
    decoder = codecs.getincrementaldecoder(ENCODING)()
    line, blank = 1, True
    for number, block in enumerate(blocks):
        for magic, description in MAGIC.items() if number == 0 else ():
            if block.startswith(magic):
                raise SectionError(f"{path}: the file is {description}")
        if (nul := block.find(b"\0")) >= 0:
            at = line + block.count(b"\n", 0, nul)
            raise SectionError(f"{path}: line {at} holds a NUL byte; the file is damaged or not text")
        blank = not _decode(path, decoder, block, line).strip() and blank
        line += block.count(b"\n")
    if not _decode(path, decoder, b"", line, final=True).strip() and blank:
        raise SectionError(f"{path}: the file is empty")


def _decode(
    path: Path, decoder: codecs.IncrementalDecoder, block: bytes, line: int, *, final: bool = False
) -> str:
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        at = line + error.object.count(b"\n", 0, error.start)
        raise SectionError(f"{path}: line {at} is not UTF-8; save the file as UTF-8") from error


def _unreadable(path: Path, error: Exception) -> SectionError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return SectionError(f"{path}: the file cannot be read ({reason})")
