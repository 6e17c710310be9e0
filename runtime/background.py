"""Work in a thread beside the main one: what is slow and known early, such as imports and pictures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

from mclst.runtime.resources import memory_is_limited

T = TypeVar("T")


class Background(Generic[T]):
    """Calls a function in a thread at once; the process does not wait for it unless `result` is asked for.

    Under a limit of memory the caller of `result` runs it instead: a thread that finds no memory as it starts
    or ends can hang CPython.
    """

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._future: Future[T] = Future()
        self._started = not memory_is_limited()
        if self._started:
            Thread(target=self._run, name=f"mclst-{name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._function())
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            self._future.set_exception(error)

    def result(self) -> T:
        """Wait for the function's result; raises what it raised."""
        if not self._started:
            self._started = True
            self._run()
        return self._future.result()

    @property
    def succeeded(self) -> bool:
        """Whether the function has ended and there is a result, so that `result` raises nothing."""
        return self._future.done() and self._future.exception() is None

    def wait(self) -> None:
        """Wait until the function has ended, however it ended."""
        if self._started:
            self._future.exception()
