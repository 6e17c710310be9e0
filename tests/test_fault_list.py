"""docs/faults.md names tests that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`(test_\w+::test_\w+(?:\[[^\n`]+\])?)`")


@pytest.mark.slow
def test_the_list_of_faults_names_tests_that_exist() -> None:
    named = set(NAMED.findall((ROOT / "docs" / "faults.md").read_text(encoding="utf-8")))
    assert len(named) > 80
    files = [
        path
        for path in (ROOT / "tests").rglob("test_*.py")
        if any(path.stem == n.split("::")[0] for n in named)
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # "folder/test_x.py::test_y[case]": the list leaves out the folder, and the case where it names all of
    # them.
    collected = {re.sub(r"^(?:[^:\[]*/)?(\w+)\.py::", r"\1::", line) for line in result.stdout.splitlines()}
    collected |= {line.partition("[")[0] for line in collected}
    missing = sorted(named - collected)
    assert not missing, result.stderr
