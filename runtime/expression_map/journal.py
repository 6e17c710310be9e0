"""Journal of an unfinished map: which rows are done, and the inputs they come from.

A line of JSON (the run's fingerprint), then blocks of records, each with a checksum. Reading stops at the
first damaged block, such as one that a power cut truncated.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
_MAGIC = b"rows"
_LONGEST_SHOWN = 40


class Journal:
    """A journal open for writing. Raises what `open_private` raises."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    def begin(
        cls, path: Path, fingerprint: Mapping[str, str], rows: int, record: np.dtype[Any] = RECORD
    ) -> Journal:
        """Start a journal, replacing any at `path`, and preallocate the space for `rows` of type `record`."""
        handle = open_private(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        journal = cls(handle)
        (name,) = (name for name, kind in FORMATS.items() if kind == record)
        head = json.dumps({"format": name, "made_of": dict(fingerprint)}).encode() + b"\n"
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, len(head) + (record.itemsize + 4) * rows + 4096)
        journal._write(head)
        return journal

    @classmethod
    def resume(cls, path: Path, end: int) -> Journal:
        """Append to the journal at `path` after its first `end` bytes."""
        handle = open_private(path, os.O_RDWR)
        os.lseek(handle, end, os.SEEK_SET)
        return cls(handle)

    def append(self, records: NDArray[np.void]) -> None:
        """Append records as one checksummed block."""
        payload = records.tobytes()
        self._write(_BLOCK.pack(_MAGIC, len(records), zlib.crc32(payload)) + payload)

    def sync(self) -> None:
        """Flush to the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file and leave it in place."""
        os.close(self._handle)

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._handle, view) :]


def read_journal(path: Path) -> tuple[dict[str, str], NDArray[np.void], int] | None:
    """Read a stopped run's journal: (fingerprint, records in the order written, bytes of its valid part).

    None if there is no journal or its first line is damaged; OutputError if another user may have planted it.
    """
    try:
        with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
            content = file.read()
    except OSError:
        return None
    head, newline, _ = content.partition(b"\n")
    parsed = _parse_head(head)
    if not newline or parsed is None:
        return None
    fingerprint, record = parsed
    blocks, position = [], len(head) + 1
    while position + _BLOCK.size <= len(content):
        magic, count, checksum = _BLOCK.unpack_from(content, position)
        end = position + _BLOCK.size + count * record.itemsize
        payload = content[position + _BLOCK.size : end]
        if magic != _MAGIC or not count or end > len(content) or zlib.crc32(payload) != checksum:
            break
        blocks.append(np.frombuffer(payload, record))
        position = end
    return fingerprint, np.concatenate(blocks) if blocks else np.empty(0, record), position


def _parse_head(head: bytes) -> tuple[dict[str, str], np.dtype[Any]] | None:
    try:
        content: Any = json.loads(head)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("format") not in tuple(FORMATS):
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
