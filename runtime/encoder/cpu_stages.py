"""The stages of an encoder that runs on the CPU: nothing is copied, and encoding is done when it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.ring import GROUPS
from mclst.runtime.progress import Clock

SLOTS = 3
"""One is encoded while the threads read two ahead."""


class CpuStages:
    """Stages over a function from tiles uint8 [n, H, W, 3] to float32 [n, D]."""

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
        """batch: [n, H, W, 3] of a slot. group_rows: the most rows of a group. clock: told of the time as "encode"."""
        self.slots = slots
        self._encode, self._clock, self._rows = encode, clock, group_rows
        self._tiles = [np.empty(batch, np.uint8) for _ in range(slots)]
        self._given: dict[int, NDArray[np.float32]] = {}
        self._group: dict[int, NDArray[np.float32]] = {}

    def tiles(self, slot: int) -> NDArray[np.uint8]:
        """See `Stages`."""
        return self._tiles[slot]

    def upload(self, slot: int, n: int, after: Sequence[Any]) -> None:
        """See `Stages`: the encoder reads the tiles where they are."""

    def encode(self, slot: int, n: int, after: Sequence[Any]) -> None:
        """See `Stages`."""
        with self._clock.stage("encode"):
            self._given[slot] = self._encode(self._tiles[slot][:n])

    def gather(self, slot: int, n: int, group: int, at: int, after: Sequence[Any]) -> None:
        """See `Stages`."""
        given = self._given.pop(slot)
        if group not in self._group:
            self._group[group] = np.empty((self._rows, given.shape[1]), np.float32)
        self._group[group][at : at + n] = given

    def group(self, group: int, n: int) -> NDArray[np.float32]:
        """See `Stages`."""
        return self._group[group][:n]

    def done(self, ticket: Any) -> bool:
        """See `Stages`."""
        return True

    def wait(self, ticket: Any) -> None:
        """See `Stages`."""

    def close(self) -> None:
        """See `Stages`."""
