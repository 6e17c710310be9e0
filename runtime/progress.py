"""Progress of a run: callbacks that hear of it, and seconds per stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


Tell = Callable[[str], None]


class Clock(dict[str, float]):
    """Seconds by stage, of one thread; the time of a stage inside another counts for the inner one alone."""

    def __init__(self, **seconds: float) -> None:
        super().__init__(seconds)
        self._running: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to stage `name`."""
        self._count()
        self._running.append((name, time.perf_counter()))
        try:
            yield
        finally:
            self._count()
            self._running.pop()
            if self._running:
                self._running[-1] = (self._running[-1][0], time.perf_counter())

    def so_far(self) -> dict[str, float]:
        """Seconds by stage up to now, those of a stage under way included."""
        self._count()
        return dict(self)

    def _count(self) -> None:
        """Add to the innermost running stage what it took since it was counted last."""
        if self._running:
            name, since = self._running[-1]
            now = time.perf_counter()
            self[name] = self.get(name, 0.0) + now - since
            self._running[-1] = (name, now)
