"""`--wsinfer`: after the extension's softmax, the measurements are the map's values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from refusals import assert_refused
from small_model import TILE_PX, Small

from mclst.export.cli import main
from mclst.export.inputs.checkpoint import open_checkpoint
from mclst.export.settings import resolve_settings
from mclst.export.wsinfer import _Retrieve, write_wsinfer
from mclst.kernels.definition.reference import aggregate
from mclst.kernels.definition.spec import DISTANCES, NEIGHBOR_WEIGHTINGS, RANKS, RetrievalSpec
from mclst.runtime import RunOptions, open_bundle, open_slide, predict
from mclst.runtime.errors import InputError, OutputError

GENES = ("GENE3", "GENE0", "GENE11")
# QuPath's extension loads TorchScript, which torch would like to retire.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)


@pytest.fixture(scope="module")
def written(small: Small, exported_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wsinfer") / "model"
    checkpoint = open_checkpoint(small.ckpt)
    settings = resolve_settings(checkpoint, {"tile": {"size_px": TILE_PX}, "retrieval": {"k": 10}})
    return write_wsinfer(checkpoint, settings, open_bundle(exported_bundle), folder, GENES, mpp=0.5)


@pytest.fixture(scope="module")
def tiles_and_map(
    small: Small, exported_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Image.Image], NDArray[np.float32]]:
    """Tiles cut by Pillow, and the map's expression of the chosen genes at their spots."""
    out = tmp_path_factory.mktemp("map") / "B1.h5ad"
    with open_slide(small.slide) as slide:
        predict(open_bundle(exported_bundle), slide, small.spots, out, RunOptions(picture=False))
    adata = anndata.read_h5ad(out)
    corner = np.floor(adata.obsm["spatial"]).astype(int) - TILE_PX // 2
    with Image.open(small.slide) as image:
        whole = ((corner >= 0) & (corner + TILE_PX <= image.size)).all(1)
        tiles = [
            image.convert("RGB").crop((x, y, x + TILE_PX, y + TILE_PX)) for x, y in corner[whole].tolist()
        ]
    assert len(tiles) >= 8
    return tiles, adata[whole, list(GENES)].X


def undone(logits: torch.Tensor, folder: Path) -> NDArray[np.float64]:
    """Softmax in float32 as the extension does, and back to expression by the README's factor."""
    shares = torch.softmax(logits, 1).numpy()
    scale = json.loads((folder / "config.json").read_text())["mclst"]["scale"]
    assert f"times {scale:g} is its expression" in (folder / "README.md").read_text()
    return np.asarray(shares[:, :-1].astype(np.float64) * scale)


def test_torch_alone_gives_the_map_s_values(
    written: Path, tiles_and_map: tuple[list[Image.Image], NDArray[np.float32]]
) -> None:
    tiles, expected = tiles_and_map
    network = torch.jit.load(written / "torchscript_model.pt")  # type: ignore[no-untyped-call]
    batch = torch.stack([torch.from_numpy(np.array(tile)).permute(2, 0, 1) / 255 for tile in tiles])
    with torch.no_grad():
        logits = network(batch)
        alone = network(batch[:1])
    assert logits.shape == (len(tiles), len(GENES) + 1)
    np.testing.assert_allclose(undone(logits, written), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone, logits[:1], rtol=0, atol=1e-5)


def test_wsinfer_s_own_loader_gives_the_map_s_values(
    written: Path,
    tiles_and_map: tuple[list[Image.Image], NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = pytest.importorskip("wsinfer_zoo.client", reason="wsinfer is not installed")
    # WSInfer patches a class of zarr 2 as it is imported; its loader uses none of it.
    monkeypatch.setattr("zarr.storage.KVStore", type("KVStore", (), {}), raising=False)
    models = pytest.importorskip("wsinfer.modellib.models", reason="wsinfer is not installed")
    transforms = pytest.importorskip("wsinfer.modellib.transforms", reason="wsinfer is not installed")
    config = client.ModelConfiguration.from_dict(json.loads((written / "config.json").read_text()))
    assert (config.patch_size_pixels, config.spacing_um_px) == (TILE_PX, 0.5)
    assert list(config.class_names) == [*GENES, "rest"]
    model = models.LocalModelTorchScript(config=config, model_path=str(written / "torchscript_model.pt"))
    network = models.get_pretrained_torch_module(model).eval()
    transform = transforms.make_compose_from_transform_config(config.transform)
    tiles, expected = tiles_and_map
    with torch.no_grad():
        logits = network(torch.stack([transform(tile) for tile in tiles]))
    np.testing.assert_allclose(undone(logits, written), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("weighting", NEIGHBOR_WEIGHTINGS)
def test_retrieval_is_the_definition_s(rank: str, distance: str, weighting: str) -> None:
    rng = np.random.default_rng(1)
    embedding, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (60, 5))
    queries[0] = embedding[7]  # distance 0
    expression = rng.random((60, 4)).astype(np.float32)
    names: dict[str, Any] = {"rank": rank, "distance": distance, "weighting": weighting}
    spec = replace(RetrievalSpec(k=9, temperature=0.7), **names)
    actual = _Retrieve(embedding, expression, spec)(torch.from_numpy(queries)).numpy()
    expected = aggregate(queries, embedding, expression, spec).expression
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_what_cannot_be_written_is_named(
    small: Small, exported_bundle: Path, written: Path, tmp_path: Path
) -> None:
    checkpoint, bundle = open_checkpoint(small.ckpt), open_bundle(exported_bundle)
    settings = resolve_settings(checkpoint, {"tile": {"size_px": TILE_PX}})

    def write(folder: Path, genes: tuple[str, ...], mpp: float | None = 0.5) -> None:
        write_wsinfer(checkpoint, settings, bundle, folder, genes, mpp)

    for genes, mpp, words in (
        (("TP53",), 0.5, "predicts no TP53"),
        (("GENE1", "GENE1"), 0.5, "twice"),
        (("GENE1",), None, "--wsinfer-mpp"),
    ):
        with pytest.raises(InputError, match=words):
            write(tmp_path / "model", genes, mpp)
    with pytest.raises(OutputError, match="exists"):
        write(written, GENES)
    assert not (tmp_path / "model").exists()


def test_options_that_contradict_are_wrong_usage(small: Small, tmp_path: Path) -> None:
    words = ["--ckpt", str(small.ckpt), "--out", str(tmp_path / "bundle")]
    for more in (
        ["--wsinfer", str(tmp_path / "model")],
        ["--wsinfer-genes", "GENE1"],
        ["--wsinfer-mpp", "0.5"],
    ):
        assert CliRunner().invoke(main, [*words, *more]).exit_code == 2
    inside = ["--wsinfer", str(tmp_path / "bundle" / "model"), "--wsinfer-genes", "GENE1"]
    assert_refused(CliRunner().invoke(main, [*words, *inside]), 5, ("inside the bundle", "--wsinfer"))
    around = ["--wsinfer", str(tmp_path), "--wsinfer-genes", "GENE1", "--overwrite"]
    assert_refused(CliRunner().invoke(main, [*words, *around]), 5, ("holds", "--wsinfer"))
