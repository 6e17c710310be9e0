"""Commands list their options without importing numpy, torch or other large packages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "pandas", "h5py", "anndata", "scipy", "matplotlib", "pydantic")
IMPORT = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
if len(sys.argv) > 2:
    try:
        module.main(["--help"])
    except SystemExit as stop:
        assert not stop.code
print(json.dumps([name for name in {heavy!r} if name in sys.modules]))
"""


def imported(*args: str) -> list[str]:
    command = [sys.executable, "-c", IMPORT.format(heavy=HEAVY), *args]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(json.loads(output.splitlines()[-1]))


@pytest.mark.parametrize("module", ["mclst.training.cli", "mclst.evaluation.cli", "mclst.demo.cli"])
def test_help_imports_no_large_package(module: str) -> None:
    assert imported(module, "--help") == []


@pytest.mark.parametrize(
    "module", ["mclst.sections", "mclst.sections.errors", "mclst.sections.normalization_names"]
)
def test_light_modules_of_sections_import_no_large_package(module: str) -> None:
    assert imported(module) == []
