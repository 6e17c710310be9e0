"""Journal of an unfinished map: which rows are done, what they come from, and tiles encoded ahead of them.

A line of JSON (the run's fingerprint), then blocks, each with a checksum: records of rows, or the encoder's
values of tiles whose rows cannot be computed yet. Reading stops at the first damaged block, such as one that
a power cut truncated.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.atomic import open_private
from mclst.runtime.trust.measures import MEASURES

RECORD = np.dtype([("row", "<u4"), ("crc", "<u4"), ("nearest", "<f4"), ("effective_k", "<f4")])
"""A row of the map: its index, the CRC-32 of its bytes, and its two columns of `obs`."""
MEASURED = np.dtype([*RECORD.descr, *((name, "<f4") for name in MEASURES)])
"""A row that was also measured for trust; see MeasuredResult."""
FORMATS = {"mclst-journal/1": RECORD, "mclst-journal/2": MEASURED}
_BLOCK = struct.Struct("<4sII")
"""What a block holds, how many, and the CRC-32 of its bytes."""
_ROWS, _TILES = b"rows", b"tile"
_WIDTH = struct.Struct("<I")
"""Values per tile, at the start of a block of tiles; then their rows uint32, and the values float32."""
_LONGEST_SHOWN = 40


class Journal:
    """A journal open for writing. Raises what `open_private` raises."""

    def __init__(self, handle: int, reserved: int = 0) -> None:
        """reserved: bytes that records of rows may still take."""
        self._handle, self._reserved = handle, reserved

    @classmethod
    def begin(
        cls, path: Path, fingerprint: Mapping[str, str], rows: int, record: np.dtype[Any] = RECORD
    ) -> Journal:
        """Start a journal, replacing any at `path`, and preallocate the space for `rows` of type `record`."""
        handle = open_private(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        journal = cls(handle, _room(rows, record))
        (name,) = (name for name, kind in FORMATS.items() if kind == record)
        head = json.dumps({"format": name, "made_of": dict(fingerprint)}).encode() + b"\n"
        journal._reserve(len(head))
        journal._write(head)
        return journal

    @classmethod
    def resume(cls, path: Path, end: int, rows: int = 0, record: np.dtype[Any] = RECORD) -> Journal:
        """Append to the journal at `path` after its first `end` bytes; rows: how many may still come."""
        handle = open_private(path, os.O_RDWR)
        os.lseek(handle, end, os.SEEK_SET)
        return cls(handle, _room(rows, record))

    def append(self, records: NDArray[np.void]) -> None:
        """Append records as one checksummed block."""
        payload = records.tobytes()
        self._write(_BLOCK.pack(_ROWS, len(records), zlib.crc32(payload)) + payload)

    def append_tiles(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Append the encoder's values [n, W] of tiles; a full disk is found before anything is written."""
        payload = _WIDTH.pack(values.shape[1]) + rows.astype("<u4").tobytes() + values.astype("<f4").tobytes()
        self._reserve(_BLOCK.size + len(payload))
        self._write(_BLOCK.pack(_TILES, len(rows), zlib.crc32(payload)) + payload)

    def sync(self) -> None:
        """Flush to the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file and leave it in place."""
        os.close(self._handle)

    def _reserve(self, size: int) -> None:
        """Claim room, if the platform can, for `size` more bytes and the records of all rows after them."""
        if hasattr(os, "posix_fallocate"):
            at = os.lseek(self._handle, 0, os.SEEK_CUR)
            os.posix_fallocate(self._handle, at, size + self._reserved)

    def _write(self, content: bytes) -> None:
        view, start = memoryview(content), os.lseek(self._handle, 0, os.SEEK_CUR)
        try:
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError:
            # Reading stops at half a block: the next one takes its place.
            os.lseek(self._handle, start, os.SEEK_SET)
            raise


def read_journal(path: Path) -> tuple[dict[str, str], NDArray[np.void], int] | None:
    """Read a stopped run's journal: (fingerprint, records in the order written, bytes of its valid part).

    None if there is no journal or its first line is damaged; OutputError if another user may have planted it.
    """
    try:
        with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
            parsed = _parse_head(file.readline())
            if parsed is None:
                return None
            fingerprint, record = parsed
            blocks, end = [np.empty(0, record)], file.tell()
            for magic, _, payload in _blocks(file, record):
                if magic == _ROWS:
                    blocks.append(np.frombuffer(payload, record))
                end = file.tell()
    except OSError:
        return None
    return fingerprint, np.concatenate(blocks), end


def read_tiles(
    path: Path, wanted: NDArray[np.bool_], width: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Read the encoder's values that a journal holds.

    Parameters
    ----------
    path : Path
        Of a journal that `read_journal` has read.
    wanted : bool [n]
        Rows of interest; others cost no memory.
    width : int
        Values per tile, W.

    Returns
    -------
    rows : int64 [m]
        Distinct, ascending.
    values : float32 [m, W]
    """
    of_row: dict[int, NDArray[np.float32]] = {}
    with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
        parsed = _parse_head(file.readline())
        for magic, count, payload in () if parsed is None else _blocks(file, parsed[1]):
            if magic != _TILES or _WIDTH.unpack_from(payload) != (width,):
                continue
            rows = np.frombuffer(payload, "<u4", count, _WIDTH.size)
            values = np.frombuffer(payload, "<f4", offset=_WIDTH.size + rows.nbytes).reshape(count, width)
            known = rows < len(wanted)
            known[known] = wanted[rows[known]]
            of_row.update(zip(rows[known].tolist(), values[known], strict=True))
    rows = np.array(sorted(of_row), np.int64)
    return rows, np.array([of_row[row] for row in rows.tolist()], np.float32).reshape(len(rows), width)


def _blocks(file: BinaryIO, record: np.dtype[Any]) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield what each intact block holds, how many, and its bytes; the file is then at the block's end."""
    while len(head := file.read(_BLOCK.size)) == _BLOCK.size:
        magic, count, checksum = _BLOCK.unpack(head)
        size = count * record.itemsize
        payload = b""
        if magic == _TILES:
            payload = file.read(_WIDTH.size)
            width = _WIDTH.unpack(payload)[0] if len(payload) == _WIDTH.size else 0
            size = 4 * count * (1 + width)
        # A damaged size asks for no more than the file has.
        left = os.fstat(file.fileno()).st_size - file.tell()
        if magic not in (_ROWS, _TILES) or not count or size > left:
            return
        payload += file.read(size)
        if zlib.crc32(payload) != checksum:
            return
        yield magic, count, payload


def _room(rows: int, record: np.dtype[Any]) -> int:
    """Bytes that the records of `rows` take in blocks."""
    return (record.itemsize + 4) * rows + 4096


def _parse_head(head: bytes) -> tuple[dict[str, str], np.dtype[Any]] | None:
    try:
        content: Any = json.loads(head)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("format") not in tuple(FORMATS) or head[-1:] != b"\n":
        return None
    fingerprint = content.get("made_of")
    if not isinstance(fingerprint, dict) or not all(isinstance(text, str) for text in fingerprint.values()):
        return None
    return fingerprint, FORMATS[content["format"]]


def describe_difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Name what differs between two fingerprints, with short values; "" if nothing does."""
    changes = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        # Hashes are only named: nobody compares them by eye.
        shown = old is not None and new is not None and max(len(old), len(new)) <= _LONGEST_SHOWN
        changes.append(f"{name} ({old} → {new})" if shown else name)
    return ", ".join(changes)
