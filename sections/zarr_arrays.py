"""Check Zarr arrays from anywhere before zarr reads them: codecs by name, chunks by what they claim to hold.

The zarr package applies any codec that metadata name, pickle among them, and allocates what a chunk claims.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mclst.sections.errors import SectionError
from mclst.sections.hdf5 import ALWAYS_ALLOWED_BYTES, MAX_RATIO

MAX_METADATA_BYTES = 16 << 20
MAX_FILES = 1_000_000
MAX_CHUNK_BYTES = 256 << 20
"""Of a chunk that is larger than its array."""
MAX_INNER_CHUNKS = 1 << 20
TEXT_BYTES = 256
"""Most bytes of a text, on average over a chunk."""
TEXTS = ("vlen-utf8", "vlen-bytes")
COMPRESSORS = ("blosc", "zstd", "lz4", "gzip", "zlib")
CHUNK = re.compile(r"c|(c[./])?\d+([./]\d+)*", re.ASCII)
HEADER_BYTES = 32
BLOCK_BYTES = 1 << 20
MISSING = 2**64 - 1
"""Offset and length of a chunk that its shard does not store."""


class Encoding(NamedTuple):
    """compressor: None for plain chunks. most_bytes: of a chunk that is unpacked."""

    compressor: str | None
    most_bytes: int


class Sharding(NamedTuple):
    """chunks: of one shard. crc, at_end, order: of its index, whose numbers are "<u8" or ">u8"."""

    chunks: int
    crc: bool
    at_end: bool
    order: str


Format = Callable[[Path, dict[str, Any]], tuple[Encoding, Sharding | None]]


def check_arrays(folder: Path) -> None:
    """Check all arrays below a folder.

    Raises
    ------
    SectionError
        If there is a link, an unknown codec, an array that declares more than files of this size can hold, or
        a chunk that claims more than its shape.
    """
    stored = declared = files = 0
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink():
                raise SectionError(f"{path} is a link; copy what it leads to")
            stored += path.stat().st_size if path.is_file() else 0
        files += len(names)
        if files > MAX_FILES:
            raise SectionError(f"{folder}: there are more than {MAX_FILES:,} files in it")
        for name in {"zarr.json", ".zarray"} & set(names):
            array = read_json(Path(place, name))
            if "shape" in array:
                declared += math.prod(int(size) for size in array["shape"]) * item_bytes(array)
                _check_chunks(Path(place), array, _format_3 if name == "zarr.json" else _format_2)
    if declared > ALWAYS_ALLOWED_BYTES + MAX_RATIO * stored:
        raise SectionError(f"{folder}: arrays declare {declared:,} bytes in files of {stored:,}")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object; SectionError if it is too large or none."""
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise SectionError(f"{path}: the metadata take more than {MAX_METADATA_BYTES >> 20} MB")
    values = json.loads(path.read_bytes())
    if not isinstance(values, dict):
        raise SectionError(f"{path}: the metadata are no object; copy the store again")
    return values


def item_bytes(array: dict[str, Any]) -> int:
    """Bytes of a value; 8 of a text."""
    kind = array.get("dtype", array.get("data_type"))
    if isinstance(kind, dict):
        return int(kind.get("configuration", {}).get("length_bytes", 8))
    if isinstance(kind, list):
        return np.dtype([(str(field[0]), str(field[1])) for field in kind]).itemsize
    try:
        return np.dtype(str(kind)).itemsize or 8
    except TypeError:
        return 8


def _check_chunks(folder: Path, array: dict[str, Any], of_format: Format) -> None:
    """Refuse codecs that are not known, and chunks that claim more than their shape."""
    encoding, sharding = of_format(folder, array)
    if encoding.compressor is None:
        return
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if CHUNK.fullmatch(path.relative_to(folder).as_posix()):
                with path.open("rb") as file:
                    for first, length in _pieces(path, file, sharding):
                        size = _unpacked(path, file, first, length, encoding)
                        if size > encoding.most_bytes:
                            raise SectionError(
                                f"{path}: a chunk unpacks to {size:,} bytes or more, where its shape takes "
                                f"{encoding.most_bytes:,}; copy the store again"
                            )


def _format_2(folder: Path, array: dict[str, Any]) -> tuple[Encoding, Sharding | None]:
    filters = [str(step["id"]) for step in array.get("filters") or []]
    compressor = array.get("compressor")
    names = [*filters, *([] if compressor is None else [str(compressor["id"])])]
    return _encoding(folder, array, array["chunks"], names), None


def _format_3(folder: Path, array: dict[str, Any]) -> tuple[Encoding, Sharding | None]:
    chunks, codecs = array["chunk_grid"]["configuration"]["chunk_shape"], array["codecs"]
    if _name(codecs[0]) != "sharding_indexed":
        return _encoding(folder, array, chunks, [_name(codec) for codec in codecs]), None
    inner = codecs[0]["configuration"]
    index = [_name(codec) for codec in inner["index_codecs"]]
    number = math.prod(chunks) // max(1, math.prod(inner["chunk_shape"]))
    if len(codecs) > 1 or index not in (["bytes"], ["bytes", "crc32c"]) or number > MAX_INNER_CHUNKS:
        raise SectionError(
            f"{folder}: the shards are encoded once more, or of too many chunks; write it again"
        )
    first = inner["index_codecs"][0]
    big = isinstance(first, dict) and first.get("configuration", {}).get("endian") == "big"
    sharding = Sharding(
        number, "crc32c" in index, inner.get("index_location", "end") == "end", ">u8" if big else "<u8"
    )
    names = [_name(codec) for codec in inner["codecs"]]
    return _encoding(folder, array, inner["chunk_shape"], names), sharding


def _name(codec: Any) -> str:
    return str(codec if isinstance(codec, str) else codec["name"]).removeprefix("numcodecs.")


def _encoding(folder: Path, array: dict[str, Any], chunks: list[int], names: list[str]) -> Encoding:
    items = math.prod(int(size) for size in chunks)
    values, least = items * item_bytes(array), min(map(int, chunks), default=1)
    whole = math.prod(int(size) for size in array["shape"]) * item_bytes(array)
    if least < 0 or values > max(MAX_CHUNK_BYTES, whole):
        raise SectionError(f"{folder}: a chunk takes {values:,} bytes; write the store with smaller chunks")
    others = [name for name in names if name not in (*TEXTS, "bytes", "transpose", "crc32c")]
    if len(others) > 1 or not set(others) <= set(COMPRESSORS):
        raise SectionError(
            f"{folder}: the array is encoded by {', '.join(others)[:80]}, where one of "
            f"{', '.join(COMPRESSORS)} is expected; write the store again"
        )
    texts = any(name in TEXTS for name in names)
    most = ALWAYS_ALLOWED_BYTES + items * TEXT_BYTES if texts else values
    return Encoding(others[0] if others else None, most)


def _pieces(path: Path, file: BinaryIO, sharding: Sharding | None) -> Iterator[tuple[int, int]]:
    """First byte and length of each chunk of a file."""
    size = os.fstat(file.fileno()).st_size
    if sharding is None:
        yield 0, size
        return
    length = 16 * sharding.chunks + 4 * sharding.crc
    if length > size:
        raise SectionError(f"{path}: the shard is shorter than its index; copy the store again")
    file.seek(size - length if sharding.at_end else 0)
    index = np.frombuffer(file.read(16 * sharding.chunks), sharding.order).reshape(-1, 2)
    for first, count in index.tolist():
        if (first, count) == (MISSING, MISSING):
            continue
        if first + count > size:
            raise SectionError(f"{path}: the shard ends before its chunks do; copy the store again")
        yield first, count


def _unpacked(path: Path, file: BinaryIO, first: int, length: int, encoding: Encoding) -> int:
    """Bytes that zarr would allocate for a chunk; those of gzip and zlib are counted."""
    file.seek(first)
    if encoding.compressor in ("gzip", "zlib"):
        return _inflated(path, file.read(length), encoding.most_bytes)
    header = file.read(min(length, HEADER_BYTES))
    if encoding.compressor == "blosc":  # version, flags, size of a value; then the size
        return int.from_bytes(header[4:8], "little")
    if encoding.compressor == "lz4":
        return int.from_bytes(header[:4], "little")
    size = _zstd_size(header)
    if size is None:
        raise SectionError(f"{path}: a chunk does not say its size; write the store again")
    return size


def _inflated(path: Path, data: bytes, most: int) -> int:
    size = 0
    while data and size <= most:
        member = zlib.decompressobj(wbits=47)  # gzip or zlib, by the header
        try:
            while data and size <= most:
                size += len(member.decompress(data, BLOCK_BYTES))
                data = member.unconsumed_tail
            data = member.unused_data
        except zlib.error as error:
            raise SectionError(f"{path}: a chunk is damaged ({error}); copy the store again") from error
    return size


def _zstd_size(header: bytes) -> int | None:
    """Content size of a Zstandard frame (RFC 8878, section 3.1.1.1), None if it does not say one."""
    if header[:4] != b"\x28\xb5\x2f\xfd" or len(header) < 6:
        return None
    flags = header[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    field = header[start : start + width]
    if not width or len(field) < width:
        return None
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)
