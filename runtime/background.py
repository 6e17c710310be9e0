"""Work in a thread beside the main one: what is slow and known early, such as imports and pictures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Calls a function in a thread at once; the process does not wait for it unless `result` is asked for."""

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._future: Future[T] = Future()
        Thread(target=self._run, name=f"mclst-{name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._function())
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self._future.set_exception(error)

    def result(self) -> T:
        """Wait for the function's result; raises what it raised."""
        return self._future.result()

    def wait(self) -> None:
        """Wait until the function has ended, however it ended."""
        self._future.exception()
