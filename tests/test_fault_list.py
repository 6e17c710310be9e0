"""docs/faults.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`(test_\w+::test_\w+(?:\[[^\n`]+\])?)`")


def short_names(node_ids: list[str]) -> set[str]:
    """`test_x::test_y[case]` and `test_x::test_y` of each "folder/test_x.py::test_y[case]"."""
    names = {re.sub(r"^(?:[^:\[]*/)?(\w+)\.py::", r"\1::", node_id) for node_id in node_ids}
    return names | {name.partition("[")[0] for name in names}


def test_the_list_of_faults_names_tests_that_exist(request: pytest.FixtureRequest) -> None:
    named = set(NAMED.findall((ROOT / "docs" / "faults.md").read_text(encoding="utf-8")))
    assert len(named) > 80
    missing = named - short_names([item.nodeid for item in request.session.items])
    # What this run does not collect: skipped files, or all but some.
    written = {
        f"{path.stem}::{test}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for test in re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert not {name.partition("[")[0] for name in missing} - written
