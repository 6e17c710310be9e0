"""The rows of a map on disk before the map is whole: checked writes, a checksum per row, and what a dead run left."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.expression_map.journal import RECORD, Journal, describe_difference, read_journal
from mclst.runtime.expression_map.lock import RunLock

CHUNK_BYTES = 8 << 20
SYNC_SECONDS = 15.0
"""What a power cut may cost; after a mere crash nothing written is lost."""


@dataclass(frozen=True)
class ResumeState:
    """What a stopped run had left: its believable rows, or why none of them is taken (`changed`)."""

    rows: int
    changed: str = ""


class RowFile:
    """Rows float32 [n, G] at `offset` of a claimed file. Raises OSError where the file system refuses.

    done: bool [n], rows on the file. nearest, effective_k: float32 [n], the map's columns beside them.
    """

    def __init__(self, claim: RunLock, shape: tuple[int, int], offset: int) -> None:
        self.claim = claim
        self.shape = shape
        self.offset = offset
        self.done = np.zeros(shape[0], np.bool_)
        self.nearest = np.full(shape[0], np.nan, np.float32)
        self.effective_k = np.full(shape[0], np.nan, np.float32)
        self._checksum = np.zeros(shape[0], np.uint32)
        self._row_bytes = 4 * shape[1]
        self._journal: Journal | None = None
        self._unsaid: list[NDArray[np.void]] = []
        self._synced = time.monotonic()

    def place(self, row: int) -> int:
        """Byte of the file where a row begins."""
        return self.offset + row * self._row_bytes

    def preallocate(self, size: int) -> None:
        """Have the file system set aside `size` bytes, where it can."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.claim.handle, 0, size)

    def begin(self, made_of: Mapping[str, str]) -> None:
        """Start the journal: from now on what is written outlives this process. made_of: what the rows come from."""
        if self.claim.keeps:
            self._journal = Journal.begin(self.claim.journal, made_of, self.shape[0])
            for records in self._unsaid:
                self._journal.append(records)
        self._unsaid = []

    def carry_on(self, made_of: Mapping[str, str]) -> ResumeState | None:
        """Take over the rows of a stopped run that was made of the same; None where no run was stopped here.

        Only rows whose bytes still have their checksum count. Where something differs, none counts and it says what.
        """
        left = read_journal(self.claim.journal) if self.claim.keeps else None
        if left is None:
            return None
        before, records, end = left
        changed = describe_difference(before, made_of)
        if changed:
            return ResumeState(len(np.unique(records["row"])), changed)
        self._restore_rows(records[records["row"] < self.shape[0]])
        self._journal = Journal.carry_on(self.claim.journal, end)
        return ResumeState(int(np.count_nonzero(self.done)))

    def _restore_rows(self, records: NDArray[np.void]) -> None:
        said = np.zeros(self.shape[0], np.bool_)
        rows = records["row"]
        said[rows] = True
        self._checksum[rows] = records["crc"]
        self.nearest[rows] = records["nearest"]
        self.effective_k[rows] = records["effective_k"]
        step = max(1, CHUNK_BYTES // self._row_bytes)
        for start in range(0, self.shape[0], step):
            asked = np.flatnonzero(said[start : start + step]) + start
            if not len(asked):
                continue
            content = self.read(self.place(start), step * self._row_bytes)
            for row in asked.tolist():
                at = (row - start) * self._row_bytes
                values = content[at : at + self._row_bytes]
                self.done[row] = len(values) == self._row_bytes and zlib.crc32(values) == self._checksum[row]
        self.nearest[~self.done] = self.effective_k[~self.done] = np.nan

    def write(self, rows: NDArray[np.integer[Any]], found: RetrievalResult) -> None:
        """Write distinct rows and what the journal says of them; a row written again is replaced."""
        order = np.argsort(rows, kind="stable")
        rows = np.asarray(rows, np.int64)[order]
        values = np.ascontiguousarray(np.asarray(found.expression)[order], "<f4")
        nearest, effective_k = np.asarray(found.nearest)[order], np.asarray(found.effective_k)[order]
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for start, stop in zip(starts, np.append(starts[1:], len(rows)), strict=True):
            self.put(values[start:stop].data.cast("B"), self.place(int(rows[start])))
        records = np.empty(len(rows), RECORD)
        records["row"], records["nearest"], records["effective_k"] = rows, nearest, effective_k
        records["crc"] = [zlib.crc32(row.data) for row in values]
        self._checksum[rows] = records["crc"]
        self.nearest[rows], self.effective_k[rows] = nearest, effective_k
        self.done[rows] = True
        if self._journal is None:
            self._unsaid.append(records)
            return
        self._journal.append(records)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self.claim.handle)
            self._journal.sync()
            self._synced = time.monotonic()

    def blank_the_rest(self) -> None:
        """Write NaN where no row came."""
        blank = np.full((1, self.shape[1]), np.nan, "<f4")
        for row in np.flatnonzero(~self.done).tolist():
            self.put(blank.data.cast("B"), self.place(row))
            self._checksum[row] = zlib.crc32(blank.data)

    def put(self, content: memoryview, offset: int) -> None:
        """Write all of `content` at `offset`."""
        done = 0
        while done < len(content):
            done += os.pwrite(self.claim.handle, content[done : done + (1 << 30)], offset + done)

    def read(self, offset: int, size: int) -> bytes:
        """Read from `offset`, fewer than `size` bytes only where the file ends."""
        parts = [b""]
        while size > 0 and (part := os.pread(self.claim.handle, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def holds(self, content: memoryview, offset: int) -> bool:
        """Whether the file holds `content` at `offset`; some of it is read at a time."""
        return all(
            self.read(offset + start, CHUNK_BYTES)[: len(content) - start]
            == content[start : start + CHUNK_BYTES]
            for start in range(0, len(content), CHUNK_BYTES)
        )

    def verify(self, matrix: h5py.Dataset | NDArray[np.float32]) -> bool:
        """Whether the rows of a matrix [n, G], read some at a time, have the checksums they were written with."""
        step = max(1, CHUNK_BYTES // self._row_bytes)
        for start in range(0, self.shape[0], step):
            found: list[Any] = [zlib.crc32(row.data) for row in matrix[start : start + step]]
            if not np.array_equal(found, self._checksum[start : start + step]):
                return False
        return True

    @property
    def kept(self) -> int:
        """Rows that a later run will find."""
        return int(np.count_nonzero(self.done)) if self._journal is not None else 0

    def close(self, *, keep: bool) -> None:
        """Let go of the files; unless `keep`, remove what is still there of them."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if keep:
            os.close(self.claim.handle)
        else:
            self.claim.remove()
