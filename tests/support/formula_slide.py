"""A slide whose pixels follow from a formula."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.slide.base import Level, Slide


class FormulaSlide(Slide):
    """A slide whose every pixel tells its place; reads can be watched, spoilt or held up."""

    def __init__(self, levels: tuple[float, ...] = (1.0,), mpp: float | None = None) -> None:
        sizes = tuple(Level(int(4000 / d), int(3000 / d), d, (64, 64)) for d in levels)
        super().__init__(Path("made-up"), reader="made-up", vendor="made-up", levels=sizes, mpp=mpp)
        self.reads, self._counting = 0, threading.Lock()
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def _read_inside(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        self.gate.wait()
        with self._counting:
            self.reads += 1
        if self.fault is not None:
            raise self.fault
        height, width, _ = pixels.shape
        across, down = np.meshgrid(np.arange(x, x + width), np.arange(y, y + height))
        pixels[:] = np.stack([across % 251, down % 251, np.full_like(across, level)], axis=-1)

    def close(self) -> None:
        pass


def reading_threads() -> set[threading.Thread]:
    """Threads that read tiles; some may be of a test before, whose traceback is still held."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("mclst-tiles")}


def scattered(n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform((100, 100), (3900, 2900), (n, 2))
