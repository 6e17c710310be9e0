"""The rows of an unfinished map on disk: checked writes, a checksum per row, and resume after a crash."""

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
from mclst.runtime.expression_map.journal import (
    MEASURED,
    RECORD,
    Journal,
    describe_difference,
    read_journal,
    read_tiles,
)
from mclst.runtime.expression_map.lock import RunLock
from mclst.runtime.trust.measures import MeasuredResult

CHUNK_BYTES = 8 << 20
SYNC_SECONDS = 15.0
"""The most work that a power cut may cost; a mere crash of the process costs none."""


@dataclass(frozen=True)
class ResumeState:
    """Rows that a stopped run left, and what differs from this run ("" if nothing: they are taken)."""

    rows: int
    changed: str = ""


class RowFile:
    """Rows float32 [n, G] from byte `offset` of a locked file. Raises OSError if the file system refuses.

    done: bool [n], rows in the file. nearest, effective_k: float32 [n], their columns of `obs`. measured:
    whether results are MeasuredResults. distance, expected_error, section_share: float32 [n],
    theirs; NaN if not.
    """

    def __init__(self, lock: RunLock, shape: tuple[int, int], offset: int, *, measured: bool = False) -> None:
        self.lock = lock
        self.shape = shape
        self.offset = offset
        self.done = np.zeros(shape[0], np.bool_)
        self.nearest = np.full(shape[0], np.nan, np.float32)
        self.effective_k = np.full(shape[0], np.nan, np.float32)
        self.distance = np.full(shape[0], np.nan, np.float32)
        self.expected_error = np.full(shape[0], np.nan, np.float32)
        self.section_share = np.full(shape[0], np.nan, np.float32)
        self._record = MEASURED if measured else RECORD
        self._checksum = np.zeros(shape[0], np.uint32)
        self._row_bytes = 4 * shape[1]
        self._journal: Journal | None = None
        self._unjournaled: list[NDArray[np.void]] = []
        self._encoded = np.zeros(shape[0], np.bool_)
        self._synced = time.monotonic()

    def row_offset(self, row: int) -> int:
        """Byte of the file at which a row begins."""
        return self.offset + row * self._row_bytes

    def preallocate(self, size: int) -> None:
        """Reserve `size` bytes on disk, if the platform can."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.lock.handle, 0, size)

    def begin(self, fingerprint: Mapping[str, str]) -> None:
        """Start the journal, and with it make all rows, written and to come, outlive this process."""
        if self.lock.resumable:
            self._journal = Journal.begin(self.lock.journal, fingerprint, self.shape[0], self._record)
            for records in self._unjournaled:
                self._journal.append(records)
        self._unjournaled = []

    def resume(self, fingerprint: Mapping[str, str]) -> ResumeState | None:
        """Take over a stopped run's rows if its fingerprint is the same; None if no run was stopped here."""
        journal = read_journal(self.lock.journal) if self.lock.resumable else None
        if journal is None:
            return None
        before, records, end = journal
        changed = describe_difference(before, fingerprint)
        if not changed and records.dtype != self._record:
            changed = "the format of its journal"
        if changed:
            return ResumeState(len(np.unique(records["row"])), changed)
        self._restore_rows(records[records["row"] < self.shape[0]])
        self._journal = Journal.resume(self.lock.journal, end, self.shape[0], self._record)
        return ResumeState(int(np.count_nonzero(self.done)))

    def _restore_rows(self, records: NDArray[np.void]) -> None:
        rows = records["row"]
        journaled = np.zeros(self.shape[0], np.bool_)
        journaled[rows] = True
        # Duplicate rows: NumPy keeps the last assignment, which is the row's newest record.
        self._checksum[rows] = records["crc"]
        columns = self.columns()
        for name, column in columns.items():
            column[rows] = records[name]
        step = max(1, CHUNK_BYTES // self._row_bytes)
        for start in range(0, self.shape[0], step):
            candidates = np.flatnonzero(journaled[start : start + step]) + start
            if not len(candidates):
                continue
            content = self.read(self.row_offset(start), step * self._row_bytes)
            for row in candidates.tolist():
                first = (row - start) * self._row_bytes
                values = content[first : first + self._row_bytes]
                # The journal may reach the disk before the row does, so a record alone proves nothing.
                self.done[row] = len(values) == self._row_bytes and zlib.crc32(values) == self._checksum[row]
        for column in columns.values():
            column[~self.done] = np.nan

    def columns(self) -> dict[str, NDArray[np.float32]]:
        """What is known of each row beside its values, float32 [n], by its name in results and records."""
        return {name: getattr(self, name) for name in self._record.names or () if name not in ("row", "crc")}

    def write(self, rows: NDArray[np.integer[Any]], result: RetrievalResult) -> None:
        """Write distinct rows and journal them; a row written again is replaced."""
        order = np.argsort(rows, kind="stable")
        rows = np.asarray(rows, np.int64)[order]
        values = np.ascontiguousarray(np.asarray(result.expression)[order], "<f4")
        if isinstance(result, MeasuredResult) != (self._record == MEASURED):
            raise ValueError("rows of a map are measured, or none is")
        # One write per run of consecutive rows.
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for start, stop in zip(starts, np.append(starts[1:], len(rows)), strict=True):
            self.write_bytes(values[start:stop].data.cast("B"), self.row_offset(int(rows[start])))
        records = np.empty(len(rows), self._record)
        records["row"], records["crc"] = rows, [zlib.crc32(row.data) for row in values]
        self._checksum[rows] = records["crc"]
        for name, column in self.columns().items():
            column[rows] = records[name] = np.asarray(getattr(result, name))[order]
        self.done[rows] = True
        if self._journal is None:
            self._unjournaled.append(records)
            return
        self._journal.append(records)
        self._sync()

    def keep_encoded(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Journal the encoder's values float32 [m, W] of tiles whose rows are not written yet."""
        if self._journal is not None:
            self._journal.append_tiles(rows, values)
            self._encoded[rows] = True
            self._sync()

    def read_encoded(
        self, wanted: NDArray[np.bool_], width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the tiles of `wanted` [n] that the journal has: rows int64 [m], values float32 [m, W]."""
        if self._journal is None:
            return np.empty(0, np.int64), np.empty((0, width), np.float32)
        rows, values = read_tiles(self.lock.journal, wanted, width)
        self._encoded[rows] = True
        return rows, values

    def _sync(self) -> None:
        if self._journal is not None and time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self.lock.handle)
            self._journal.sync()
            self._synced = time.monotonic()

    def fill_missing(self) -> None:
        """Write NaN to the rows that are not done."""
        blank = np.full((1, self.shape[1]), np.nan, "<f4")
        for row in np.flatnonzero(~self.done).tolist():
            self.write_bytes(blank.data.cast("B"), self.row_offset(row))
            self._checksum[row] = zlib.crc32(blank.data)

    def write_bytes(self, content: memoryview, offset: int) -> None:
        """Write all of `content` at `offset`."""
        done = 0
        while done < len(content):
            done += os.pwrite(self.lock.handle, content[done : done + (1 << 30)], offset + done)

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset`, fewer only at the end of the file."""
        parts = [b""]
        while size > 0 and (part := os.pread(self.lock.handle, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def contains(self, content: memoryview, offset: int) -> bool:
        """Whether the file holds `content` at `offset`; compares a chunk at a time."""
        return all(
            self.read(offset + start, CHUNK_BYTES)[: len(content) - start]
            == content[start : start + CHUNK_BYTES]
            for start in range(0, len(content), CHUNK_BYTES)
        )

    def verify(self, matrix: h5py.Dataset | NDArray[np.float32]) -> bool:
        """Whether all rows of a matrix [n, G], read in chunks, have the checksums they were written with."""
        step = max(1, CHUNK_BYTES // self._row_bytes)
        for start in range(0, self.shape[0], step):
            checksums: list[Any] = [zlib.crc32(row.data) for row in matrix[start : start + step]]
            if not np.array_equal(checksums, self._checksum[start : start + step]):
                return False
        return True

    @property
    def resumable_rows(self) -> int:
        """Number of rows that the next run would find, or compute without encoding their tiles."""
        return int(np.count_nonzero(self.done | self._encoded)) if self._journal is not None else 0

    def close(self, *, keep: bool) -> None:
        """Release the lock; remove the files unless `keep`."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if keep:
            os.close(self.lock.handle)
        else:
            self.lock.remove()
