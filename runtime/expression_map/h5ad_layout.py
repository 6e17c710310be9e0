"""An `.h5ad` written around a matrix on disk: HDF5 lays out everything but X in memory.

On a full disk HDF5 may lose data without an error, so it never writes to the disk here. It writes to a memory
file with a gap where X belongs, and the caller writes both to the disk with checked writes.
"""

from __future__ import annotations

from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO
from typing import Any

import anndata.io
import h5py


class _FileWithGap:
    """A memory file that pretends to hold the bytes start to stop; has the methods that h5py calls."""

    def __init__(self) -> None:
        self.bytes = BytesIO()
        self.start = self.stop = 0
        self.position = 0
        self.gap_touched = False

    def open_gap(self, start: int, size: int) -> None:
        self.gap_touched |= len(self.bytes.getbuffer()) > start
        self.start, self.stop = start, start + size

    def _index(self, position: int) -> int:
        """Where a file position is in `bytes`, which leave the gap out."""
        return position if position <= self.start else position - (self.stop - self.start)

    def _advance(self, size: int) -> None:
        # HDF5 swallows an exception raised in here, so access to the gap is recorded and reported on closing.
        self.gap_touched |= self.position < self.stop and self.position + size > self.start and size > 0
        self.bytes.seek(self._index(self.position))
        self.position += size

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        end = len(self.bytes.getbuffer())
        base = {SEEK_SET: 0, SEEK_CUR: self.position, SEEK_END: end + (self.stop - self.start)}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        self._advance(len(buffer))
        return self.bytes.readinto(buffer)

    def read(self, size: int) -> bytes:
        self._advance(size)
        return self.bytes.read(size)

    def write(self, content: memoryview) -> int:
        self._advance(len(content))
        return self.bytes.write(content)

    def truncate(self, size: int | None = None) -> int:
        self.bytes.truncate(max(self.start, self._index(self.position if size is None else size)))
        return self.position

    def flush(self) -> None:
        """h5py calls it; nothing is buffered."""


class H5adImage:
    """The bytes of a `.h5ad` except those of X.

    offset: byte of the file at which X begins: float32, little-endian, row-major; known before anything is
    written.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        """Place X of `shape`, both sides at least 1, at the head of the file."""
        self._memory = _FileWithGap()
        self._file = h5py.File(self._memory, "w")
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        # Contiguous and allocated early: the offset is known now. No fill: HDF5 itself never writes into the
        # gap.
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(shape)
        matrix = h5py.h5d.create(self._file.id, b"X", h5py.h5t.IEEE_F32LE, space, creation)
        self.offset = int(matrix.get_offset())
        self._memory.open_gap(self.offset, int(matrix.get_storage_size()))
        h5py.Dataset(matrix).attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def put(self, key: str, value: Any, *, compress: bool = False) -> None:
        """Write one element ("obs", "uns", …) as anndata stores it; raises what anndata or HDF5 raise."""
        options = {"compression": "gzip", "compression_opts": 4} if compress else {}
        anndata.io.write_elem(self._file, key, value, dataset_kwargs=options)

    def abandon(self) -> None:
        """Close the file unfinished. May be called again, and after `close`."""
        # Left open, HDF5 closes it at exit by calling Python methods when the interpreter is gone: a crash.
        self._file.close()

    def forget(self) -> None:
        """Free the bytes that `close` returned."""
        self._memory = _FileWithGap()

    def close(self) -> tuple[list[tuple[int, memoryview]], int]:
        """Finish the file: ([(offset, bytes), …] of everything but X, size of the whole file in bytes).

        Raises RuntimeError if HDF5 read or wrote where X belongs.
        """
        self._file.close()
        memory = self._memory
        if memory.gap_touched:
            raise RuntimeError(
                "HDF5 accessed the bytes of X; this version of HDF5 lays files out differently"
            )
        content = memory.bytes.getbuffer()
        segments = [(0, content[: memory.start]), (memory.stop, content[memory.start :])]
        return segments, max(memory.stop, len(content) + memory.stop - memory.start)
