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


def test_under_a_limit_of_memory_no_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mclst.runtime.background.memory_is_limited", lambda: True)
    calls: list[str] = []
    work = Background(lambda: calls.append(threading.current_thread().name), "work")
    work.wait()
    assert not calls
    work.result()
    work.result()
    assert calls == [threading.current_thread().name]


def test_waiting_ends_when_the_work_does() -> None:
    go = threading.Event()
    work = Background(go.wait, "work")
    go.set()
    work.wait()
    assert work.result()
