"""Interface between reading and encoding: batches of tiles and the buffers they are read into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TileBatch:
    """A batch of tiles.

    Attributes
    ----------
    rows : int64 [b]
        Row numbers of the tiles' positions.
    tiles : uint8 [b, H, W, 3]
        RGB, a view of a buffer: valid until the buffer is returned, or in plain iteration until the next
        batch.
    failed : tuple of (int, str)
        (row, reason) of tiles that cannot be decoded; they are not in `rows`.
    ends_group : bool
        Whether it is the last batch of its group (see `Tiles`).
    slot : int
        Number of the buffer.
    """

    rows: NDArray[np.int64]
    tiles: NDArray[np.uint8]
    failed: tuple[tuple[int, str], ...]
    ends_group: bool = True
    slot: int = 0


class Buffers(Protocol):
    """Provides the buffers that batches are read into."""

    def take(self, *, wait: bool) -> int | None:
        """Take a free buffer and return its number; None if there is none and `wait` is False."""

    def buffer(self, slot: int) -> NDArray[np.uint8]:
        """The buffer with that number: uint8 [batch_size or more, H, W, 3]."""
