"""What a command imports before it works: `--help` needs click alone, and a run only what it uses."""

from __future__ import annotations

import importlib
import subprocess
import sys

import click
import pytest

from mclst.runtime.entry_points import COMMANDS

HEAVY = {
    "anndata",
    "dask",
    "faiss",
    "h5py",
    "matplotlib",
    "numpy",
    "onnx",
    "onnxruntime",
    "pandas",
    "PIL",
    "pydantic",
    "ray",
    "rich",
    "scipy",
    "sklearn",
    "tifffile",
    "torch",
    "zarr",
}


def imported_by(code: str) -> set[str]:
    """Top-level names of all modules that are loaded after `code`."""
    report = f"{code}\nimport sys; sys.stderr.write('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_imports_nothing_heavy(command: str) -> None:
    module, _ = COMMANDS[command]
    code = f"from {module} import main\ntry: main(['--help'])\nexcept SystemExit as end: assert not end.code"
    assert not imported_by(code) & HEAVY


def test_the_overview_lists_every_command() -> None:
    code = "from mclst.runtime.entry_points import overview; overview()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(COMMANDS)
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_exit_codes(command: str) -> None:
    main = importlib.import_module(COMMANDS[command][0]).main
    assert "Exit codes: 0 done, " in " ".join(main.get_help(click.Context(main)).split())


@pytest.mark.parametrize(
    "module",
    [
        "mclst.runtime",
        "mclst.kernels",
        "mclst.sections",
        "mclst.sections.errors",
        "mclst.sections.normalization_names",
    ],
)
def test_importing_a_light_module_imports_nothing_heavy(module: str) -> None:
    assert not imported_by(f"import {module}") & HEAVY


@pytest.mark.slow
def test_before_its_first_tile_a_run_loads_nothing_that_draws_or_writes() -> None:
    """These take a second, and are loaded beside the work instead."""
    code = (
        "import mclst.runtime.run.predict, mclst.runtime.inference.loaded_model, pathlib, tempfile\n"
        "from mclst.sections.tables.spots import read_spots\n"
        "path = pathlib.Path(tempfile.mkdtemp(), 'spots.csv')\n"
        "path.write_text('id,x_px,y_px\\na,1,2\\nb,3,4\\n')\n"
        "assert len(read_spots(path)) == 2; path.unlink(); path.parent.rmdir()"
    )
    assert not imported_by(code) & {
        "anndata",
        "dask",
        "matplotlib",
        "openvino",
        "onnxruntime",
        "pandas",
        "scipy",
        "zarr",
    }
