"""Maps to report on, and pages in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_maps import SyntheticMap, synthetic_map


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SyntheticMap:
    """A working folder with made.h5ad."""
    monkeypatch.chdir(tmp_path)
    return synthetic_map(tmp_path / "made.h5ad")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from mclst.benchmarks.page.browser import open_browser

    with open_browser() as context:
        yield context


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    from open_pages import opened_pages

    with opened_pages(browser, tmp_path) as show:
        yield show
