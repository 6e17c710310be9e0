"""Work beside the main thread."""

from __future__ import annotations

import threading

import pytest

from mclst.runtime.background import Background


def test_a_result_and_an_error_reach_whoever_asks() -> None:
    caller = threading.current_thread().name
    assert Background(lambda: threading.current_thread().name, "work").result() == "mclst-work" != caller

    def fail() -> None:
        raise ValueError("it failed")

    work = Background(fail, "work")
    work.wait()
    with pytest.raises(ValueError, match="it failed"):
        work.result()


def test_waiting_ends_when_the_work_does() -> None:
    go = threading.Event()
    work = Background(lambda: go.wait(30), "work")
    go.set()
    work.wait()
    assert work.result()
