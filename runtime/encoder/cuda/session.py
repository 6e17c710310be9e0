"""A session on a CUDA device, around any `Runner`."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.stages import SLOTS, DeviceStages, Runner
from mclst.runtime.encoder.ring import Stages, encode_now
from mclst.runtime.encoder.session import check_tiles
from mclst.runtime.progress import Clock


class DeviceSession:
    """A session whose encoder is run on a device by a `Runner`."""

    def __init__(
        self,
        device: CudaDevice,
        make_runner: Callable[[int], Runner],
        *,
        provider: str,
        engine: str,
        tile: tuple[int, ...],
        width: int,
    ) -> None:
        """make_runner: from the batch size. tile: [H, W, 3]. width: D. provider, engine: see `Session`."""
        self.provider, self.engine = provider, engine
        self._device, self._make_runner = device, make_runner
        self._tile, self._width = tile, width
        self._clock = Clock()
        # Stages of the last batch size of `encode`: none or one. They end with the session.
        self._single: list[DeviceStages] = []
        self._release = weakref.finalize(self, _close, self._single)

    def stages(
        self, batch: int, *, group_rows: int, on_device: bool, clock: Clock, slots: int | None = None
    ) -> Stages:
        """See `Session`."""
        return self._stages(batch, group_rows, on_device, clock, slots or SLOTS)

    def _stages(
        self, batch: int, group_rows: int, on_device: bool, clock: Clock, slots: int = SLOTS
    ) -> DeviceStages:
        return DeviceStages(
            self._device,
            self._make_runner(batch),
            tile=self._tile,
            width=self._width,
            group_rows=group_rows,
            on_device=on_device,
            clock=clock,
            slots=slots,
        )

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Session`; all N tiles are one batch."""
        check_tiles(tiles, self._tile)
        if not len(tiles):
            return np.empty((0, self._width), np.float32)
        if not self._single or self._single[0].batch != len(tiles):
            _close(self._single)
            self._single.append(self._stages(len(tiles), len(tiles), False, self._clock))
        return encode_now(self._single[0], tiles)

    def device_seconds(self) -> dict[str, float]:
        """Device time of all calls of `encode`: seconds of "upload", "encode" and "download"."""
        for stages in self._single:
            stages.settle()
        return dict(self._clock)


def _close(single: list[DeviceStages]) -> None:
    while single:
        single.pop().close()
