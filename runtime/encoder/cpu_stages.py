"""What sessions on the CPU share: part of `Session`, and stages that are synchronous and copy nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.micro_batches import MicroBatches
from mclst.runtime.encoder.ring import GROUPS, Stages
from mclst.runtime.encoder.session import check_tiles
from mclst.runtime.progress import Clock

# One batch is encoded while two are read ahead.
SLOTS = 3


class CpuStages:
    """Stages around a function from tiles uint8 [n, H, W, 3] to float32 [n, D]."""

    groups = GROUPS

    def __init__(
        self,
        encode: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        *,
        batch: tuple[int, ...],
        group_rows: int,
        clock: Clock,
        slots: int = SLOTS,
    ) -> None:
        """batch: shape [n, H, W, 3] of a slot. group_rows: most rows of a group. clock: receives "encode"."""
        self.slots = slots
        self._encode, self._clock, self._rows = encode, clock, group_rows
        self._tiles = [np.empty(batch, np.uint8) for _ in range(slots)]
        self._encoded: dict[int, NDArray[np.float32]] = {}
        self._groups: dict[int, NDArray[np.float32]] = {}

    def tiles(self, slot: int) -> NDArray[np.uint8]:
        """See `Stages`."""
        return self._tiles[slot]

    def upload(self, slot: int, n: int, after: Sequence[Any]) -> None:
        """See `Stages`; nothing to copy."""

    def encode(self, slot: int, n: int, after: Sequence[Any]) -> None:
        """See `Stages`."""
        with self._clock.stage("encode"):
            self._encoded[slot] = self._encode(self._tiles[slot][:n])

    def gather(self, slot: int, n: int, group: int, at: int, after: Sequence[Any]) -> None:
        """See `Stages`."""
        encoded = self._encoded.pop(slot)
        if group not in self._groups:
            self._groups[group] = np.empty((self._rows, encoded.shape[1]), np.float32)
        self._groups[group][at : at + n] = encoded

    def group(self, group: int, n: int) -> NDArray[np.float32]:
        """See `Stages`."""
        return self._groups[group][:n]

    def done(self, ticket: Any) -> bool:
        """See `Stages`."""
        return True

    def wait(self, ticket: Any) -> None:
        """See `Stages`."""

    def close(self) -> None:
        """See `Stages`."""


class CpuSession:
    """Base of a `Session` on the CPU; a subclass sets the tile's shape [H, W, 3] and what encodes tiles."""

    provider: str
    engine: str
    _tile: tuple[int, ...]
    _run: MicroBatches

    @property
    def tile(self) -> tuple[int, ...]:
        """Shape [H, W, 3] of a tile."""
        return self._tile

    @property
    def lanes(self) -> int:
        """Tiles that are encoded side by side."""
        return self._run.lanes

    @property
    def heavy(self) -> bool:
        """Whether the network has many weights."""
        return self._run.heavy

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Session`."""
        check_tiles(tiles, self._tile)
        return self._run(tiles)

    def stages(
        self, batch: int, *, group_rows: int, on_device: bool, clock: Clock, slots: int | None = None
    ) -> Stages:
        """See `Session`."""
        return CpuStages(
            self.encode, batch=(batch, *self._tile), group_rows=group_rows, clock=clock, slots=slots or SLOTS
        )
