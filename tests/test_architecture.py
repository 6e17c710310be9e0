"""The import graph of the code: arrows point one way, no circles, small folders, no torch below export."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_MODULES = 14

# A folder imports exactly what its line names. A folder's root modules count as a folder of their own.
TABLE = """\
demo: training training/fitting models/recipes export runtime/run runtime/report/page
    runtime/report/figures runtime/expression_map runtime/slide runtime/bundle runtime sections/formats
    sections/tables sections
benchmarks/gpu_check: benchmarks/reading benchmarks/retrieval benchmarks/harness benchmarks/roofline export
    export/parity runtime/tiling runtime/slide runtime/decoding runtime/encoder/cuda runtime/encoder runtime
    kernels kernels/cuda kernels/definition models
benchmarks/systems: benchmarks/contenders benchmarks/retrieval benchmarks/harness export/parity
    export/onnx runtime/cli runtime/inference runtime/providers runtime/encoder runtime/bundle runtime
    kernels kernels/definition sections/tables sections models models/recipes training/fitting
benchmarks/whole_command: benchmarks/encoder benchmarks/contenders benchmarks/harness runtime/cli
    runtime/providers runtime/features runtime/slide runtime/bundle runtime sections/tables sections
benchmarks/end_to_end: benchmarks/contenders benchmarks/harness benchmarks/schemas benchmarks/roofline
    runtime/cli runtime/report/figures runtime/bundle runtime sections/tables sections
benchmarks/encoder: benchmarks/contenders benchmarks/harness benchmarks/schemas benchmarks/roofline
    export/parity runtime/cli runtime/providers runtime/report/figures runtime/inference runtime/encoder
    runtime/bundle runtime sections/tables
benchmarks/reporting: benchmarks/contenders benchmarks/harness runtime/report/page runtime models/recipes
benchmarks/memory: benchmarks/harness runtime/run runtime/report/figures runtime/tiling runtime/slide
    runtime/bundle runtime
benchmarks/scale: benchmarks/memory benchmarks/page benchmarks/harness runtime/run runtime/report
    runtime/slide runtime/bundle runtime sections/formats sections/tables
benchmarks/contenders: benchmarks/retrieval benchmarks/harness export/inputs export/onnx export/parity
    runtime/run runtime/report runtime/inference runtime/providers runtime/expression_map runtime/tiling
    runtime/encoder/cuda runtime/slide runtime/encoder runtime/bundle runtime kernels/definition
    sections/tables sections
benchmarks/serving: benchmarks/harness runtime/serving runtime/report/figures runtime
benchmarks/page: benchmarks/harness runtime/report/page runtime/expression_map runtime kernels
    kernels/definition sections
benchmarks/accuracy: benchmarks/harness training training/fitting export/parity export/onnx
    runtime/providers runtime/encoder runtime/features runtime/bundle runtime models sections/formats sections
benchmarks/recipes: benchmarks/harness export export/parity export/onnx runtime/providers
    runtime/encoder/tensorrt runtime/bundle runtime models/recipes
benchmarks/retrieval: benchmarks/harness benchmarks/roofline runtime/report/figures runtime kernels
    kernels/definition
benchmarks/leaderboard: benchmarks/harness training/fitting runtime/providers runtime/encoder
    runtime/bundle runtime sections
benchmarks/nulls: benchmarks/harness evaluation/baselines evaluation/metrics runtime sections/tables
benchmarks/trust: benchmarks/harness evaluation runtime/expression_map runtime
benchmarks/robustness: benchmarks/contenders benchmarks/harness evaluation evaluation/baselines
    runtime/cli runtime/providers runtime/trust runtime/run runtime/expression_map runtime/report/figures
    runtime/inference runtime/tiling runtime/slide runtime/encoder runtime/bundle runtime sections/tables
    sections
benchmarks/reading: benchmarks/harness runtime/tiling runtime/slide runtime/decoding runtime
benchmarks/harness: runtime kernels/cpu
benchmarks/schemas:
benchmarks/roofline:
benchmarks: runtime
tl: runtime/report runtime/run runtime/sharing runtime/slide runtime/bundle runtime sections
adapters: runtime/sharing runtime/inference runtime/providers runtime/encoder runtime/bundle runtime
evaluation: evaluation/baselines evaluation/metrics runtime/report/page runtime/report/figures
    runtime/expression_map runtime/bundle runtime sections/formats sections/tables sections
evaluation/baselines: training/fitting models/recipes runtime/features runtime/expression_map runtime/tiling
    runtime/slide
    runtime/bundle runtime sections/formats sections/tables sections
evaluation/metrics: runtime/expression_map sections
training: runtime/tiling runtime/slide runtime/bundle runtime kernels kernels/definition sections/formats
    sections/tables sections models models/recipes
training/fitting: training export/onnx runtime/providers runtime/features runtime/tiling runtime/slide
    runtime/storage runtime/encoder runtime/trust runtime/bundle runtime kernels kernels/definition
    sections/formats sections/tables sections models models/recipes
export: export/triton export/parity export/inputs export/onnx runtime/cli runtime/serving
    runtime/inference runtime/providers runtime/encoder/tensorrt runtime/encoder/cuda runtime/encoder
    runtime/trust runtime/bundle runtime kernels/definition sections models kernels runtime/tiling
    runtime/slide
export/triton: runtime/serving runtime/encoder/tensorrt runtime/encoder/cuda runtime/encoder runtime/bundle
    runtime
export/parity: export/inputs export/onnx runtime/tiling runtime/slide runtime/encoder runtime/bundle runtime
    kernels kernels/definition sections
export/inputs: runtime/bundle runtime sections/formats sections/tables sections models models/recipes
export/onnx: runtime/encoder runtime/bundle runtime models
runtime/cli: runtime/cohort runtime/run runtime/report runtime/report/page runtime/serving runtime/sharing
    runtime/inference runtime/providers runtime/expression_map runtime/slide runtime/bundle runtime
    kernels/definition sections
runtime/cohort: runtime/run runtime/report runtime/inference runtime/providers runtime/expression_map
    runtime/tiling runtime/slide runtime/bundle runtime sections/tables sections
runtime/run: runtime/report runtime/providers runtime/features runtime/inference runtime/report/page
    runtime/report/figures runtime/report/export runtime/expression_map runtime/trust runtime/tiling
    runtime/slide runtime/storage runtime/encoder runtime/bundle runtime kernels/definition
    sections/formats sections/tables sections
runtime/report: runtime/report/page runtime/report/figures runtime/report/export runtime/expression_map
    runtime
runtime/serving: runtime/inference runtime/providers runtime/encoder runtime/trust runtime/bundle runtime
    kernels kernels/definition sections
runtime/sharing: runtime/encoder runtime/tiling runtime/slide runtime/bundle runtime
runtime/report/page: runtime/report/figures runtime/expression_map runtime
runtime/inference: runtime/providers runtime/encoder/cuda runtime/slide runtime/encoder runtime/trust
    runtime/bundle runtime kernels kernels/cuda kernels/definition sections
runtime/providers: runtime/encoder/tensorrt runtime/encoder/cuda runtime/encoder runtime/bundle runtime
    kernels/cuda kernels/definition
runtime/report/figures: runtime/expression_map runtime
runtime/report/export: runtime/expression_map runtime/tiling runtime sections/tables sections
runtime/encoder/tensorrt: runtime/encoder/cuda runtime/encoder runtime/bundle runtime kernels/definition
runtime/expression_map: runtime/trust runtime/decoding runtime kernels/definition sections/formats
    sections/tables sections
runtime/trust: runtime/slide runtime kernels kernels/definition
runtime/tiling: runtime/slide runtime sections/tables sections
runtime/features: runtime kernels/definition
runtime/encoder/cuda: runtime/encoder runtime kernels/cuda kernels/definition
runtime/slide: runtime/slide/zarr runtime/storage runtime/decoding runtime sections/formats sections
runtime/slide/zarr: runtime/storage runtime
runtime/storage: runtime sections
runtime/decoding: sections
runtime/encoder: runtime kernels/definition
runtime/bundle: runtime/trust runtime kernels/definition sections
runtime: kernels/definition sections/formats sections
kernels: kernels/faiss kernels/cuda kernels/cpu kernels/definition
kernels/faiss: kernels/definition
kernels/cuda: kernels/definition
kernels/cpu: kernels/definition sections
kernels/definition:
sections/formats: sections/tenx sections/tables sections
sections/tenx: sections/tables sections
sections/tables: sections
sections:
models: models/recipes
models/recipes: runtime
"""
ALLOWED = {
    folder: set(allowed.split())
    for folder, _, allowed in (line.partition(":") for line in TABLE.replace("\n    ", " ").splitlines())
}
TOP = sorted({folder.split("/")[0] for folder in ALLOWED})
FILES = sorted(path for top in TOP for path in (ROOT / top).rglob("*.py"))
NAMES = {path: "mclst." + ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
MODULES = {name.removesuffix(".__init__"): path for path, name in NAMES.items()}


def folder_of(path: Path) -> str:
    return path.parent.relative_to(ROOT).as_posix()


@cache
def imported(path: Path) -> frozenset[str]:
    """The dotted names a file imports, inside functions too, but not re-exports for type checkers."""
    tree = ast.parse(path.read_text())
    if path.name == "__init__.py":
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def modules_imported(path: Path) -> set[Path]:
    """The project's files that a file imports."""
    files = (MODULES.get(name) or MODULES.get(name.rpartition(".")[0]) for name in imported(path))
    return {file for file in files if file is not None} - {path}


@cache
def graph() -> dict[Path, set[Path]]:
    """Of each file, the project's files that it imports."""
    return {path: modules_imported(path) for path in FILES}


def test_every_import_of_the_project_is_in_the_graph() -> None:
    for path in FILES:
        for name in imported(path):
            if name.startswith("mclst."):
                assert name in MODULES or name.rpartition(".")[0] in MODULES, f"{path} imports {name}"


def test_modules_import_each_other_in_no_circle() -> None:
    try:
        tuple(TopologicalSorter(graph()).static_order())
    except CycleError as error:
        pytest.fail("a circle of imports: " + " → ".join(NAMES[path] for path in error.args[1]))


def test_folders_import_each_other_in_no_circle() -> None:
    try:
        tuple(TopologicalSorter(ALLOWED).static_order())
    except CycleError as error:
        pytest.fail("a circle in ALLOWED: " + " → ".join(error.args[1]))


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_arrows_point_down(folder: str) -> None:
    used = {folder_of(target) for path in FILES if folder_of(path) == folder for target in graph()[path]}
    assert used - {folder} == ALLOWED[folder], "the table and the code differ"


@pytest.mark.parametrize("folder", sorted({folder_of(path) for path in FILES}))
def test_a_folder_is_small_and_says_its_job(folder: str) -> None:
    modules = [path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES
    docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
    assert docstring is not None and "\n" not in docstring


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_torch_stays_out_of_the_runtime(path: Path) -> None:
    if folder_of(path).split("/")[0] in {"kernels", "sections", "runtime"}:
        assert not {name.split(".")[0] for name in imported(path)} & {"torch", "torchvision", "timm", "onnx"}


def test_every_folder_is_packaged() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {folder_of(path) for path in FILES}
    assert set(setup["packages"]) == {f"mclst.{folder.replace('/', '.')}" for folder in folders}
    assert setup["package-dir"] == {f"mclst.{top}": top for top in TOP}


@pytest.mark.parametrize(
    "module", ["mclst.runtime.cli.infer", "mclst.runtime", "mclst.kernels", "mclst.sections"]
)
@pytest.mark.slow
def test_imports_where_torch_is_blocked(module: str) -> None:
    blocked = (
        "import sys; [sys.modules.__setitem__(n, None) for n in ('torch', 'torchvision', 'timm', 'onnx')]; "
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{blocked}import {module}"],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
