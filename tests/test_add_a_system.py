"""Follow docs/add-a-system.md: export and run the system in its code block."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from small_model import GENES, Small
from small_systems import randomize_norms

import mclst.models
from mclst.export.cli import main as export_main
from mclst.runtime.cli.infer import main as infer_main
from mclst.sections.tables.spots import read_spots

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "add-a-system.md"


@pytest.fixture
def seventh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[torch.nn.Module]]:
    """Network class of the guide, importable as a module of models/."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "regressor.py").write_text(code)
    monkeypatch.setattr(mclst.models, "__path__", [*mclst.models.__path__, str(tmp_path / "models")])
    yield import_module("mclst.models.regressor").Regressor
    del sys.modules["mclst.models.regressor"]


def test_one_file_is_enough(seventh: type[torch.nn.Module], small: Small, tmp_path: Path) -> None:
    torch.manual_seed(4)
    network = randomize_norms(seventh(GENES))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    words = ["--ckpt", str(tmp_path / "model.pt"), "--out", str(tmp_path / "bundle"), "--parity-tiles", "4"]
    words += ["--precision", "fp32"]
    genes = ["--genes", str(small.folder / "genes.txt"), "--tile-px", "32"]
    result = CliRunner().invoke(export_main, [*words, *genes])
    assert result.exit_code == 0 and "Regressor" in result.stderr, result.output
    slide = [str(small.slide), "--spots", str(small.spots), "--bundle", str(tmp_path / "bundle")]
    result = CliRunner().invoke(infer_main, [*slide, "--out", str(tmp_path / "map.h5ad"), "--no-picture"])
    assert result.exit_code == 0, result.output
    picture = np.pad(np.asarray(Image.open(small.slide).convert("RGB")), ((100, 100), (100, 100), (0, 0)))
    corners = np.floor(read_spots(small.spots).xy_px).astype(int) + 84
    tiles = np.stack([picture[y : y + 32, x : x + 32] for x, y in corners]) / 255
    pixels = ((tiles - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = network.encode_tiles(torch.from_numpy(pixels).float()).numpy()  # type: ignore[operator]
    predicted = anndata.read_h5ad(tmp_path / "map.h5ad")
    assert np.abs(predicted.X - expected).max() < 1e-4 * max(1, np.abs(expected).max())
