"""Progress of a run: callback types, and seconds per stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
"""Called with the number of tiles done since the last call."""
Notify = Callable[[str], None]
"""Called with a message for the user."""


class Clock(dict[str, float]):
    """Seconds by stage, for one thread; time in a nested stage counts for the inner one only."""

    def __init__(self, **seconds: float) -> None:
        super().__init__(seconds)
        self._running: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside the context to stage `name`."""
        self._count()
        self._running.append((name, time.perf_counter()))
        try:
            yield
        finally:
            self._count()
            self._running.pop()
            if self._running:
                self._running[-1] = (self._running[-1][0], time.perf_counter())

    def snapshot(self) -> dict[str, float]:
        """Seconds by stage so far, including the running stage."""
        self._count()
        return dict(self)

    def _count(self) -> None:
        """Add the time since the last count to the innermost running stage."""
        if self._running:
            name, since = self._running[-1]
            now = time.perf_counter()
            self[name] = self.get(name, 0.0) + now - since
            self._running[-1] = (name, now)
