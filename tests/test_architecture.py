"""Data flows one way: the arrows between folders, and torch kept out of the runtime."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "kernels": set(),
    "sections": set(),
    "models": set(),
    "runtime": {"kernels", "sections"},
    "export": {"models", "runtime", "kernels", "sections"},
    "training": {"models", "runtime", "kernels", "sections"},
    "benchmarks": {"training", "export", "models", "runtime", "kernels", "sections"},
    "demo": {"benchmarks", "training", "export", "models", "runtime", "kernels", "sections"},
}
FILES = [path for folder in ALLOWED for path in sorted((ROOT / folder).glob("**/*.py"))]


def imported(path: Path) -> set[str]:
    """Dotted names of all modules a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    used = {name.split(".")[1] for name in imported(path) if name.startswith("mclst.")}
    assert used - {folder} <= ALLOWED[folder]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_stays_out_of_the_runtime(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] in {"kernels", "sections", "runtime"}:
        heavy = {name.split(".")[0] for name in imported(path)} & {"torch", "torchvision", "timm", "onnx"}
        assert not heavy


def test_every_folder_is_packaged() -> None:
    import tomllib

    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {str(path.parent.relative_to(ROOT)) for path in FILES}
    assert {f"mclst.{folder.replace('/', '.')}" for folder in folders} == set(setup["packages"])
    assert setup["package-dir"] == {f"mclst.{folder.replace('/', '.')}": folder for folder in folders}


@pytest.mark.parametrize(
    "module", ["mclst.runtime.cli.infer", "mclst.runtime", "mclst.kernels", "mclst.sections"]
)
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
