"""The contract between reading and encoding: batches of tiles, and the buffers they are read into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TileBatch:
    """Some of the tiles.

    rows: int64 [b], which rows of the positions they belong to. tiles: uint8 [b, H, W, 3], RGB, the first of a buffer;
    valid until that is given back, and in plain iteration until the next batch is asked for. failed: (row, reason) of
    tiles that cannot be decoded; they are not among `rows`. ends_group: whether it is the last of the batches that come
    together (see Tiles). slot: the buffer's number.
    """

    rows: NDArray[np.int64]
    tiles: NDArray[np.uint8]
    failed: tuple[tuple[int, str], ...]
    ends_group: bool = True
    slot: int = 0


class Buffers(Protocol):
    """Where batches are read into."""

    def take(self, *, wait: bool) -> int | None:
        """The number of a buffer that is free; None where none is yet, and `wait` is False."""

    def buffer(self, slot: int) -> NDArray[np.uint8]:
        """The buffer of that number: uint8 [batch_size or more, H, W, 3]."""
