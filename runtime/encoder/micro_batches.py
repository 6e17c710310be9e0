"""A batch in pieces, side by side: each thread takes tiles through the whole network by itself.

Threads that share every operator of a network meet at a barrier after each, and hand their cache's content around; those
that have tiles of their own do not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

PIECE = 4
"""Tiles that go through the network together: few, so that what is between its layers stays in the cache."""

HEAVY_BYTES = 64 << 20
"""A network with more weights than this has them read for every piece; its pieces are as large as they can be."""


class MicroBatches:
    """A function from tiles [n, H, W, 3] to float32 [n, D], called with pieces of a batch on several threads."""

    def __init__(
        self,
        function: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        lanes: int,
        *,
        heavy: bool,
    ) -> None:
        """lanes: threads. heavy: whether its weights are many (HEAVY_BYTES), so that pieces should be large."""
        self._function, self._lanes, self._heavy = function, lanes, heavy
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="mclst-encode") if lanes > 1 else None

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The function's result for the whole batch."""
        share = -(-len(tiles) // self._lanes)
        piece = share if self._heavy else min(PIECE, share)
        if self._pool is None or piece >= len(tiles):
            return self._function(tiles)
        pieces = [tiles[at : at + piece] for at in range(0, len(tiles), piece)]
        return np.concatenate(list(self._pool.map(self._function, pieces)))
