"""Chunks of a Zarr array: which file or part of a shard holds one, and its values."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.slide.zarr.codecs import CRC_BYTES, checked, decode, most_bytes
from mclst.runtime.slide.zarr.metadata import ArrayMetadata, Sharding, read_array
from mclst.runtime.storage.files import ByteFolder, Part

MISSING = np.uint64(2**64 - 1)
"""Offset and length of a chunk that its shard does not store."""
INDEX_CACHE_BYTES = 32 << 20


class ZarrArray:
    """An array of uint8 in a folder; threads may read at the same time.

    path: of the array within the folder, ending with `/`. Raises ZarrError for metadata that is refused.
    """

    def __init__(self, folder: ByteFolder, path: str) -> None:
        self.path = path
        self.metadata: ArrayMetadata = read_array(folder, path)
        self._indexes: OrderedDict[str, NDArray[np.uint64]] = OrderedDict()
        self._lock = Lock()

    def read_chunk(self, folder: ByteFolder, place: Sequence[int]) -> NDArray[np.uint8]:
        """Read a chunk, of its full shape even at the array's edge; the fill value where none is stored.

        place: number of the chunk along each axis. Raises OSError if the folder cannot be read, any other
        exception if the chunk is damaged.
        """
        array = self.metadata
        part = self.part(folder, place)
        if part is None:
            data = None
        elif part.length is None:
            data = folder.read(part.name, part.limit)
        else:
            data = folder.read_range(part.name, part.offset, part.length)
            if data is None or len(data) != part.length:
                raise ValueError("its shard ends before its data does")
        if data is None:
            return np.full(array.chunks, array.fill, np.uint8)
        values = np.frombuffer(decode(data, array.encoding.codecs, math.prod(array.chunks)), np.uint8)
        order = array.encoding.order
        stored = values.reshape([array.chunks[axis] for axis in order])
        return stored.transpose(np.argsort(order))

    def part(self, folder: ByteFolder, place: Sequence[int]) -> Part | None:
        """Where a chunk is: a file, or a part of a shard, whose index is read; None if it is not stored."""
        array, limit = self.metadata, most_bytes(math.prod(self.metadata.chunks))
        if array.sharding is None:
            return Part(self._name(place), 0, None, limit)
        counts = [
            shard // chunk for shard, chunk in zip(array.sharding.shape, self.metadata.chunks, strict=True)
        ]
        name = self._name([number // count for number, count in zip(place, counts, strict=True)])
        index = self._index(folder, array.sharding, name, counts)
        if index is None:
            return None
        inner = [number % count for number, count in zip(place, counts, strict=True)]
        offset, length = index[np.ravel_multi_index(inner, counts)]
        if offset == MISSING and length == MISSING:
            return None
        if length > limit or offset > 2**62:
            raise ValueError(f"its shard declares {int(length):,} bytes for it")
        return Part(name, int(offset), int(length), int(length))

    def _name(self, place: Sequence[int]) -> str:
        """File of a chunk, or of a shard."""
        array = self.metadata
        return f"{self.path}{array.prefix}{array.separator.join(map(str, place))}"

    def _index(
        self, folder: ByteFolder, sharding: Sharding, name: str, counts: list[int]
    ) -> NDArray[np.uint64] | None:
        """Where each chunk of a shard is: uint64 [chunks, 2], offset and length; None without a shard."""
        size = 16 * math.prod(counts) + CRC_BYTES * sharding.index_crc
        with self._lock:  # held while reading, so that each is read once
            if name in self._indexes:
                self._indexes.move_to_end(name)
                return self._indexes[name]
            data = folder.read_range(name, -size if sharding.index_at_end else 0, size)
            if data is None:
                return None
            if len(data) != size:
                raise ValueError("its shard is shorter than its index")
            if sharding.index_crc:
                data = checked(data)
            kind = ">u8" if sharding.big_endian else "<u8"
            index = self._indexes[name] = np.frombuffer(data, kind).astype(np.uint64).reshape(-1, 2)
            held = sum(other.nbytes for other in self._indexes.values())
            while held > INDEX_CACHE_BYTES and len(self._indexes) > 1:
                held -= self._indexes.popitem(last=False)[1].nbytes
        return index
