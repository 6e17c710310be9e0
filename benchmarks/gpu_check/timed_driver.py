"""Device times of a retrieval by stage: a driver that records events around every kernel and copy."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from mclst.kernels.cuda.driver import Driver

COPY_UP, COPY_DOWN = "copy up", "copy down"


class TimedDriver:
    """A `Driver` around another one, which notes when each kernel and each copy begins and ends."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._noted: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def launch(
        self, kernel: str, grid: tuple[int, int], block: int, shared: int, argument: Any, stream: Any
    ) -> None:
        """See `Driver`."""
        start = self._mark(stream)
        self._driver.launch(kernel, grid, block, shared, argument, stream)
        self._noted.append((kernel, start, self._mark(stream)))

    def copy_to_device(self, to: int, source: NDArray[Any], stream: Any) -> None:
        """See `Driver`."""
        start = self._mark(stream)
        self._driver.copy_to_device(to, source, stream)
        self._noted.append((COPY_UP, start, self._mark(stream)))

    def copy_to_host(self, to: NDArray[Any], source: int, stream: Any) -> None:
        """See `Driver`."""
        start = self._mark(stream)
        self._driver.copy_to_host(to, source, stream)
        self._noted.append((COPY_DOWN, start, self._mark(stream)))

    def take_seconds(self) -> dict[str, float]:
        """Seconds of each stage since the last call; all work is done."""
        seconds: dict[str, float] = {}
        for name, start, end in self._noted:
            self._driver.synchronize(end)
            seconds[name] = seconds.get(name, 0.0) + self._driver.elapsed(start, end)
            self._driver.destroy_event(start)
            self._driver.destroy_event(end)
        self._noted.clear()
        return seconds

    def _mark(self, stream: Any) -> Any:
        event = self._driver.create_event()
        self._driver.record(event, stream)
        return event
