"""Every test that docs/faults.md names exists, so that the list stays true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`(test_\w+)::(test_\w+)(?:\[([^\]]+)\])?`")


def test_the_list_of_faults_names_tests_that_exist() -> None:
    named = NAMED.findall((ROOT / "docs" / "faults.md").read_text(encoding="utf-8"))
    assert len(named) > 80
    for file, test, case in named:
        text = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
        defined = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
        assert test in defined, f"{file}::{test}"
        assert case in text, f"{file}::{test}[{case}]"
