"""All six systems: names and shapes of their checkpoints; slide systems of published widths on tissue."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from click.testing import CliRunner
from PIL import Image
from published_layouts import FEW_LAYERS, LAYOUTS, random_state, wrapped

from mclst.export.cli import main as export_main
from mclst.export.inputs.checkpoint import open_checkpoint
from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.bundle.manifest import Graph
from mclst.runtime.cli.infer import main as infer_main
from mclst.runtime.inference.spot_graph import nearest_spots
from mclst.sections.section import Spots
from mclst.sections.tables.spots import read_spots

# system: entries of the published state dict; parameters with 785 genes (250 for ST-Net, 3467 for BLEEP's own
# count)
PUBLISHED: dict[str, tuple[int, int]] = {
    "mclstexp": (761, 116_132_850),
    "bleep": (330, 24_366_400),
    "stnet": (727, 7_210_106),
    "histogene": (96, 106_648_337),
    "hist2st": (162, 75_789_833),
    "thitogene": (117, 63_586_712),
}
SLIDE_SYSTEMS = ("hist2st", "histogene", "thitogene")
"""The others at their published sizes: test_real_section.py, test_bleep.py and test_systems.py."""
SIDE, MARGIN = 2400, 112
"""Of the piece of C4 that is predicted, px: its side, and what is left of it around the spots."""


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_name_and_shape_is_the_published_one(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]()
    weights = {n: s for n, s in layout.items() if "running_" not in n and s}
    assert (len(layout), sum(torch.Size(s).numel() for s in weights.values())) == PUBLISHED[name]
    empty = {key: torch.zeros(()).expand(shape) for key, shape in layout.items()}
    torch.save(wrapped(name, empty), tmp_path / "model.ckpt")
    checkpoint = open_checkpoint(tmp_path / "model.ckpt")
    assert checkpoint.system.name == name
    with torch.device("meta"):
        state = checkpoint.system.build(checkpoint.traits, 1).state_dict()
    own = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if checkpoint.system.cut_positions:
        own |= {key: layout[key] for key in ("x_embed.weight", "y_embed.weight")}
    only_training = {key for key in layout if key.startswith(checkpoint.system.training_only)}
    assert own == {key: shape for key, shape in layout.items() if key not in only_training}
    assert bool(only_training) == (name == "hist2st")


@pytest.fixture(scope="module")
def piece(her2st: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with slide.tif, the middle of section C4, and spots.tsv, its spots."""
    folder = tmp_path_factory.mktemp("piece")
    table = pd.read_csv(her2st / "spots" / "C4_selection.tsv", sep="\t")
    pixel = table[["pixel_x", "pixel_y"]]
    corner = (pixel.median() - SIDE / 2).astype(int)
    x, y = corner
    with Image.open(her2st / "images" / "C4.jpg") as picture:
        tissue = np.asarray(picture.crop((x, y, x + SIDE, y + SIDE)))
    tifffile.imwrite(folder / "slide.tif", tissue, photometric="rgb", tile=(256, 256), metadata=None)
    table[["pixel_x", "pixel_y"]] = pixel - corner
    inside = ((table[["pixel_x", "pixel_y"]] - SIDE / 2).abs() < SIDE / 2 - MARGIN).all(axis=1)
    table[inside].to_csv(folder / "spots.tsv", sep="\t", index=False)
    return folder


@pytest.fixture(params=SLIDE_SYSTEMS)
def deployed(
    request: pytest.FixtureRequest, her2st: Path, piece: Path, tmp_path: Path
) -> Iterator[tuple[str, Bundle, Path]]:
    """A checkpoint of published widths with random weights → bundle → map; removed afterwards."""
    name = request.param
    torch.save(wrapped(name, random_state(FEW_LAYERS[name]())), tmp_path / "model.ckpt")
    words = ["--ckpt", tmp_path / "model.ckpt", "--out", tmp_path / "mclst-bundle", "--parity-tiles", "6"]
    words += ["--genes", her2st / "genes.txt", "--precision", "fp32", "-q"]
    result = CliRunner().invoke(export_main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    words = [piece / "slide.tif", "--spots", piece / "spots.tsv", "--bundle", tmp_path / "mclst-bundle"]
    words += ["--out", tmp_path / "map.h5ad", "--no-picture", "--no-html", "-q", "--max-bad-tiles", "0"]
    result = CliRunner().invoke(infer_main, [*map(str, words), "--provider", "cpu"])
    assert result.exit_code == 0, result.output
    yield name, open_bundle(tmp_path / "mclst-bundle"), tmp_path
    shutil.rmtree(tmp_path)


def predict_in_torch(name: str, bundle: Bundle, slide: Path, spots: Spots, ckpt: Path) -> np.ndarray:
    """Cut tiles by hand and run the checkpoint's network in torch over all spots."""
    size = bundle.manifest.tile.size_px
    picture, margin = np.asarray(Image.open(slide).convert("RGB")), size // 2
    corners = np.floor(spots.xy_px).astype(int) - margin
    tiles = np.stack([picture[y : y + size, x : x + size] for x, y in corners])
    pixels = tiles.transpose(0, 3, 2, 1)  # x before y
    network: Any = open_checkpoint(ckpt).network(heads=16)
    assert spots.array_xy is not None
    prune: Any = "grid" if name == "hist2st" else "none"
    graph = nearest_spots(spots.array_xy, Graph(neighbors=4, prune=prune))
    edges = () if name == "histogene" else tuple(map(torch.from_numpy, graph))
    with torch.inference_mode():
        features = network.encode_tiles(torch.from_numpy(np.ascontiguousarray(pixels, np.float32)))
        expression = network.predict_expression(features, torch.from_numpy(spots.array_xy), *edges)
    out: np.ndarray = expression.double().numpy()
    return out


def test_slide_systems_of_the_published_widths_on_real_tissue(
    deployed: tuple[str, Bundle, Path], piece: Path
) -> None:
    name, bundle, folder = deployed
    spots = read_spots(piece / "spots.tsv")
    predicted = anndata.read_h5ad(folder / "map.h5ad")
    expected = predict_in_torch(name, bundle, piece / "slide.tif", spots, folder / "model.ckpt")
    assert predicted.uns["mclst"]["bundle"]["system"] == name
    assert predicted.obs_names.tolist() == spots.id.tolist() and predicted.n_vars == bundle.manifest.genes
    assert len(spots) > 40 and np.ptp(expected, axis=0).mean() > 1e-3, "spots differ"
    assert np.abs(predicted.X - expected).max() < 1e-4 * max(1, float(np.abs(expected).max()))
