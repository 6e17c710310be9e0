"""Which rows of an unfinished map are done, and from which inputs: what a stopped run leaves for the next one.

A journal is one line of JSON (what the run was made of), then blocks of records, each with its own checksum. What the
power cut short, and everything after it, is not believed; nor is a row whose bytes no longer have the checksum here.
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

FORMAT = "mclst-journal/1"
RECORD = np.dtype([("row", "<u4"), ("crc", "<u4"), ("nearest", "<f4"), ("effective_k", "<f4")])
"""One row of the map: its place, the CRC-32 of its bytes, and its two columns in `obs`."""
_BLOCK = struct.Struct("<4sII")
_MAGIC = b"rows"


class Journal:
    """A journal being written. Raises OSError where the file system refuses."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    @classmethod
    def begin(cls, path: Path, made_of: Mapping[str, str], rows: int) -> Journal:
        """Start a journal in place of any at `path`; made_of: what the rows come from. Its space is taken at once."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        journal = cls(path, handle)
        head = json.dumps({"format": FORMAT, "made_of": dict(made_of)}).encode() + b"\n"
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, len(head) + (RECORD.itemsize + 4) * rows + 4096)
        journal._write(head)
        return journal

    @classmethod
    def carry_on(cls, path: Path, end: int) -> Journal:
        """Go on with the journal at `path`, after its first `end` bytes."""
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.lseek(handle, end, os.SEEK_SET)
        return cls(path, handle)

    def append(self, records: NDArray[np.void]) -> None:
        """Add a block of RECORDs, whole or (after a crash) not believed."""
        payload = records.tobytes()
        self._write(_BLOCK.pack(_MAGIC, len(records), zlib.crc32(payload)) + payload)

    def sync(self) -> None:
        """Bring it to the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; it stays where it is."""
        os.close(self._handle)

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._handle, view) :]


def read_journal(path: Path) -> tuple[dict[str, str], NDArray[np.void], int] | None:
    """Read what a stopped run left: (what it was made of, RECORDs in the order written, bytes that are believed).

    None where there is no journal or its head cannot be believed.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head, newline, _ = content.partition(b"\n")
    made_of = _made_of(head)
    if not newline or made_of is None:
        return None
    blocks, at = [], len(head) + 1
    while at + _BLOCK.size <= len(content):
        magic, count, checksum = _BLOCK.unpack_from(content, at)
        end = at + _BLOCK.size + count * RECORD.itemsize
        payload = content[at + _BLOCK.size : end]
        if magic != _MAGIC or not count or end > len(content) or zlib.crc32(payload) != checksum:
            break
        blocks.append(np.frombuffer(payload, RECORD))
        at = end
    return made_of, np.concatenate(blocks) if blocks else np.empty(0, RECORD), at


def _made_of(head: bytes) -> dict[str, str] | None:
    try:
        found: Any = json.loads(head)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return None
    made_of = found.get("made_of")
    if not isinstance(made_of, dict) or not all(isinstance(value, str) for value in made_of.values()):
        return None
    return made_of


def describe_difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between two runs, in words for people; "" where nothing does. Hashes are named, not shown."""
    changes = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        shown = old is not None and new is not None and max(len(old), len(new)) <= 40
        changes.append(f"{name} ({old} → {new})" if shown else name)
    return ", ".join(changes)
