"""A map's file that is opened beside other work."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from mclst.runtime.errors import OutputError, Terminated
from mclst.runtime.run.early import LateMap


@pytest.mark.parametrize("inside", ["done", "exception", "result"])
def test_a_stop_as_a_run_looks_whether_its_map_is_open_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    writer: Any = SimpleNamespace()
    late = LateMap(lambda: writer, whole=False)
    assert late.opened is None
    assert late.writer is writer and late.opened is writer

    def stopped(*_: Any) -> Any:
        raise Terminated(15)

    with monkeypatch.context() as patch:
        patch.setattr(Future, inside, stopped)
        with pytest.raises(Terminated):
            _ = late.opened
    assert late.opened is writer


def test_a_map_that_cannot_be_opened_is_not_open() -> None:
    def refuse() -> Any:
        raise OutputError("map.h5ad cannot be written")

    late = LateMap(refuse, whole=False)
    with pytest.raises(OutputError, match="cannot be written"):
        _ = late.writer
    assert late.opened is None
    with late:
        pass
