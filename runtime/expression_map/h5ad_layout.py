"""An `.h5ad` written around matrices on disk: HDF5 lays out everything but X and layers in memory.

On a full disk HDF5 may lose data without an error, so it never writes to the disk here. It writes to a memory
file with gaps where the matrices belong, and the caller writes both to the disk with checked writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO
from typing import Any

import h5py

from mclst.runtime.expression_map.h5ad_elements import write_element


class _FileWithGaps:
    """A memory file that pretends to hold the bytes of its gaps; has the methods that h5py calls."""

    def __init__(self) -> None:
        self.bytes = BytesIO()
        self.gaps: list[tuple[int, int]] = []
        self.position = 0
        self.gap_touched = False

    def open_gap(self, start: int, size: int) -> None:
        """Add the bytes from `start`, behind all gaps so far and all that is written."""
        self.gap_touched |= self.size > start
        self.gaps.append((start, start + size))

    @property
    def size(self) -> int:
        return len(self.bytes.getbuffer()) + sum(stop - start for start, stop in self.gaps)

    def segments(self) -> list[tuple[int, memoryview]]:
        """[(offset, bytes), …] of everything but the gaps."""
        content, result, begin, at = self.bytes.getbuffer(), [], 0, 0
        for start, stop in self.gaps:
            result.append((at, content[begin : begin + start - at]))
            begin, at = begin + start - at, stop
        return [*result, (at, content[begin:])]

    def _index(self, position: int) -> int:
        """Where a file position is in `bytes`, which leave the gaps out."""
        return position - sum(min(stop, position) - start for start, stop in self.gaps if start < position)

    def _advance(self, size: int) -> None:
        # HDF5 swallows an exception raised in here, so access to a gap is recorded and reported on closing.
        end = self.position + size
        self.gap_touched |= size > 0 and any(
            self.position < stop and end > start for start, stop in self.gaps
        )
        self.bytes.seek(self._index(self.position))
        self.position += size

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        base = {SEEK_SET: 0, SEEK_CUR: self.position, SEEK_END: self.size}[whence]
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
        last = self.gaps[-1][1] if self.gaps else 0
        self.bytes.truncate(self._index(max(last, self.position if size is None else size)))
        return self.position

    def flush(self) -> None:
        """h5py calls it; nothing is buffered."""


class H5adImage:
    """The bytes of a `.h5ad` except those of its matrices: X and layers of the same shape.

    offset: byte of the file at which X begins: float32, little-endian, row-major; known before anything is
    written. layer_offsets: the same of each layer.
    """

    def __init__(self, shape: tuple[int, int], layers: Sequence[str] = ()) -> None:
        """Place X and the layers of `shape`, both sides at least 1, at the head of the file."""
        self._memory = _FileWithGaps()
        self._file = h5py.File(self._memory, "w")
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self.offset = self._place("X", shape)
        if layers:
            attributes = {"encoding-type": "dict", "encoding-version": "0.1.0"}
            self._file.create_group("layers").attrs.update(attributes)
        self.layer_offsets = {name: self._place(f"layers/{name}", shape) for name in layers}

    @property
    def end(self) -> int:
        """Byte behind the last matrix."""
        return self._memory.gaps[-1][1]

    def _place(self, name: str, shape: tuple[int, int]) -> int:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        # Contiguous and allocated early: the offset is known now. No fill: HDF5 itself never writes into the
        # gap.
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(shape)
        matrix = h5py.h5d.create(self._file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, creation)
        offset = int(matrix.get_offset())
        self._memory.open_gap(offset, int(matrix.get_storage_size()))
        h5py.Dataset(matrix).attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return offset

    def put(self, key: str, value: Any, *, compress: bool = False) -> None:
        """Write one element ("obs", "uns", …); raises what `write_element` or HDF5 raise."""
        write_element(self._file, key, value, compress=compress)

    def abandon(self) -> None:
        """Close the file unfinished. May be called again, and after `close`."""
        # Left open, HDF5 closes it at exit by calling Python methods when the interpreter is gone: a crash.
        self._file.close()

    def forget(self) -> None:
        """Free the bytes that `close` returned."""
        self._memory = _FileWithGaps()

    def close(self) -> tuple[list[tuple[int, memoryview]], int]:
        """Finish the file: ([(offset, bytes), …] of everything but the matrices, size of the whole in bytes).

        Raises RuntimeError if HDF5 read or wrote where a matrix belongs.
        """
        self._file.close()
        if self._memory.gap_touched:
            raise RuntimeError(
                "HDF5 accessed the bytes of a matrix; this version of HDF5 lays files out differently"
            )
        return self._memory.segments(), max(self.end, self._memory.size)
