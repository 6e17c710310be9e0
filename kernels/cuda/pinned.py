"""Results in page-locked memory, which a device writes while the host works, and which is used again."""

from __future__ import annotations

import sys
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mclst.kernels.cuda.driver import Driver
from mclst.kernels.definition.contract import ProviderError

_LEAST_BYTES = 4096
_LARGE_BYTES = 256 << 20
KEPT_BLOCKS, KEPT_BYTES = 8, 8 << 30
"""Free blocks of a size that are kept: two of results, two of each small array; and their bytes."""


def block_bytes(nbytes: int) -> int:
    """Bytes of the block for an array of `nbytes`."""
    if nbytes > _LARGE_BYTES:
        return -(-nbytes // _LARGE_BYTES) * _LARGE_BYTES
    return max(_LEAST_BYTES, 1 << max(0, nbytes - 1).bit_length())


class PinnedPool:
    """Arrays in page-locked memory. An array's memory returns to the pool with the last reference to it.

    Page-locking takes as long as copying, so memory is kept, in blocks of powers of two, or of 256 MiB.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._free: dict[int, deque[NDArray[np.uint8]]] = {}
        self._released = False

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of any content. Raises ProviderError if there is no memory."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        size = block_bytes(nbytes)
        try:
            memory = self._free.setdefault(size, deque()).pop()
        except IndexError:
            memory = self._driver.allocate_pinned(size)
        return np.asarray(_Block(self, memory, shape, np.dtype(dtype)))

    def release(self) -> None:
        """Free what is not in use now, and the rest when it no longer is."""
        self._released = True
        for blocks in self._free.values():
            while blocks:
                self._driver.free_pinned(blocks.pop())

    def give_back(self, memory: NDArray[np.uint8]) -> None:
        """Take a block back, in any thread."""
        blocks = self._free.setdefault(len(memory), deque())
        if self._released or len(blocks) >= max(1, min(KEPT_BLOCKS, KEPT_BYTES // len(memory))):
            self._driver.free_pinned(memory)
        else:
            blocks.append(memory)


class _Block:
    """The owner of an array's memory."""

    def __init__(
        self, pool: PinnedPool, memory: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._pool, self._memory = pool, memory
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (memory.ctypes.data, False),
            "version": 3,
        }

    def __del__(self) -> None:
        if not sys.is_finalizing():
            # A device that failed was reported before.
            with suppress(ProviderError):
                self._pool.give_back(self._memory)
