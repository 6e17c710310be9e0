"""Memory that segments are decoded into: what was let go last is used first, while it is still in the processor's cache."""

from __future__ import annotations

from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_FREE_BYTES = 8 << 20
"""Kept by each thread between uses: more would be memory for nothing, since the cache holds what is used again."""


class BufferPool:
    """Lends arrays of one size; one that no array looks at any more is lent again, to the thread that let it go."""

    def __init__(self, size: int) -> None:
        """size: bytes of an array."""
        self._size = size
        self._free = local()

    def acquire(self) -> NDArray[np.uint8]:
        """Give a writable array uint8 [size] of any content; it comes back by itself, after the last view of it."""
        free = self._mine()
        slab = free.pop() if free else np.empty(self._size, np.uint8)
        return np.asarray(_Lent(slab, self))

    def release(self, slab: NDArray[np.uint8]) -> None:
        """Keep a slab for the next, where there are few."""
        free = self._mine()
        if (len(free) + 1) * self._size <= MOST_FREE_BYTES:
            free.append(slab)

    def _mine(self) -> list[NDArray[np.uint8]]:
        free: list[NDArray[np.uint8]] | None = getattr(self._free, "slabs", None)
        if free is None:
            free = self._free.slabs = []
        return free


class _Lent:
    """What every view of a lent array keeps alive: numpy follows the bases of a view no further than this."""

    def __init__(self, slab: NDArray[np.uint8], home: BufferPool) -> None:
        self._slab, self._home = slab, home
        self.__array_interface__: dict[str, Any] = slab.__array_interface__

    def __del__(self) -> None:
        self._home.release(self._slab)
