"""A `.h5ad` around a matrix that lies on disk: everything but X is made in memory.

HDF5 writing straight to a full disk may lose data without an error, so HDF5 never touches the disk here.
It writes into memory, leaves a gap where X belongs, and the caller puts the bytes in place with checked writes.
"""

from __future__ import annotations

from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO
from typing import Any

import anndata.io
import h5py


class _Gapped:
    """A file in memory whose bytes start … stop are elsewhere; as much of a file as HDF5 asks for."""

    def __init__(self) -> None:
        self.bytes = BytesIO()
        self.start = self.stop = 0
        self.position = 0
        self.trespassed = False

    def open_gap(self, start: int, size: int) -> None:
        self.trespassed |= len(self.bytes.getbuffer()) > start
        self.start, self.stop = start, start + size

    def _place(self, position: int) -> int:
        return position if position <= self.start else position - (self.stop - self.start)

    def _enter(self, size: int) -> None:
        # HDF5 swallows an exception raised in here, so a trespass is noted and reported on closing.
        self.trespassed |= self.position < self.stop and self.position + size > self.start and size > 0
        self.bytes.seek(self._place(self.position))
        self.position += size

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        end = len(self.bytes.getbuffer())
        base = {SEEK_SET: 0, SEEK_CUR: self.position, SEEK_END: end + (self.stop - self.start)}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        self._enter(len(buffer))
        return self.bytes.readinto(buffer)

    def read(self, size: int) -> bytes:
        self._enter(size)
        return self.bytes.read(size)

    def write(self, content: memoryview) -> int:
        self._enter(len(content))
        return self.bytes.write(content)

    def truncate(self, size: int | None = None) -> int:
        self.bytes.truncate(max(self.start, self._place(self.position if size is None else size)))
        return self.position

    def flush(self) -> None:
        """Nothing is buffered."""


class H5adImage:
    """The bytes of a `.h5ad` without those of X.

    offset: byte of the file where X float32 [shape], row by row, little-endian, begins; known at once.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        """Lay out X of `shape`, both sides at least 1, at the head of the file."""
        self._gapped = _Gapped()
        self._file = h5py.File(self._gapped, "w")
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(shape)
        matrix = h5py.h5d.create(self._file.id, b"X", h5py.h5t.IEEE_F32LE, space, creation)
        self.offset = int(matrix.get_offset())
        self._gapped.open_gap(self.offset, int(matrix.get_storage_size()))
        h5py.Dataset(matrix).attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def put(self, key: str, value: Any, *, compress: bool = False) -> None:
        """Write one element ("obs", "uns", …) as anndata stores it.

        Raises what anndata or HDF5 raise where the value cannot be stored.
        """
        options = {"compression": "gzip", "compression_opts": 4} if compress else {}
        anndata.io.write_elem(self._file, key, value, dataset_kwargs=options)

    def abandon(self) -> None:
        """Let go of the file; harmless when called again, or after `close`.

        HDF5 would otherwise close it as the process ends, through Python that has ended already: a crash.
        """
        self._file.close()

    def forget(self) -> None:
        """Let go of the bytes that `close` gave, once nobody looks at them."""
        self._gapped = _Gapped()

    def close(self) -> tuple[list[tuple[int, memoryview]], int]:
        """Finish the file: ([(offset, bytes), …] of everything but X, size of the whole file in bytes).

        Raises RuntimeError where HDF5 reached into the place of X.
        """
        self._file.close()
        gapped = self._gapped
        if gapped.trespassed:
            raise RuntimeError(
                "HDF5 reached into the place of X; this version of HDF5 lays files out differently"
            )
        content = gapped.bytes.getbuffer()
        segments = [(0, content[: gapped.start]), (gapped.stop, content[gapped.start :])]
        return segments, max(gapped.stop, len(content) + gapped.stop - gapped.start)
