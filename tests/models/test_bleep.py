"""BLEEP: published layout, bank without sentences, and export to map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.special
import torch
from click.testing import CliRunner
from small_model import GENES, Small
from small_systems import randomize_norms

from mclst.export.bundling import export_bundle
from mclst.export.inputs.checkpoint import open_checkpoint
from mclst.export.onnx.graph import preprocess
from mclst.models.bleep import Bleep
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main
from mclst.runtime.errors import CheckpointError
from mclst.runtime.providers.opening import open_session

TILE_PX = 32


@pytest.fixture(scope="module")
def network() -> Bleep:
    torch.manual_seed(3)
    return randomize_norms(Bleep("resnet50", GENES, projection_dim=16))


@pytest.fixture(scope="module")
def ckpt(network: Bleep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the published training saves it: DistributedDataParallel's prefix and the old `well` names."""
    path = tmp_path_factory.mktemp("bleep") / "best.pt"
    state = {f"module.{k.replace('spot_', 'well_')}": v for k, v in network.state_dict().items()}
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def bundle(ckpt: Path, small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bleep-bundle") / "mclst-bundle"
    change = {"tile": {"size_px": TILE_PX}, "retrieval": {"k": 9}}
    export_bundle(ckpt, out, references=[small.folder], hold_out=["B1"], overrides=change, parity_tiles=5)
    return out


def test_the_published_layout_is_bleep() -> None:
    """Key names, shapes and counts of the published code."""
    with torch.device("meta"):
        state = Bleep("resnet50", 3467).state_dict()
    assert len(state) == 330
    assert sum(name.startswith("image_encoder.model.") for name in state) == 318
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["image_encoder.model.conv1.weight"] == (64, 3, 7, 7)
    assert "image_encoder.model.layer4.2.bn3.num_batches_tracked" in shapes
    assert shapes["image_projection.projection.weight"] == (256, 2048)
    assert shapes["spot_projection.projection.weight"] == (256, 3467)
    assert (
        sum(t.numel() for name, t in state.items() if "running" not in name and "num_b" not in name)
        == 25_052_992
    )


@pytest.mark.parametrize(
    "encoder",
    ["resnet101", "resnet152", "vit_base_patch32_224", "vit_base_patch32_clip_224", "vit_large_patch32_224"],
)
def test_every_published_image_encoder_is_recognized(tmp_path: Path, encoder: str) -> None:
    with torch.device("meta"):
        shapes = Bleep(encoder, 5).state_dict()
    torch.save({name: torch.zeros(()).expand(t.shape) for name, t in shapes.items()}, tmp_path / "best.pt")
    checkpoint = open_checkpoint(tmp_path / "best.pt")
    assert (checkpoint.system.name, checkpoint.encoder, checkpoint.genes) == ("bleep", encoder, 5)


def test_defaults_are_the_published_ones(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert (
        manifest.kind,
        manifest.system,
        manifest.encoder.name,
        manifest.context,
        manifest.spot_encoder,
    ) == (
        "retrieval",
        "bleep",
        "resnet50",
        None,
        None,
    )
    assert (manifest.preprocessing.channels, manifest.preprocessing.pixel_range) == ("bgr", "0-255")
    assert manifest.retrieval is not None and manifest.retrieval.model_dump() == {
        "k": 9,
        "rank": "cosine",
        "distance": "l2",
        "weighting": "uniform",
        "temperature": 1.0,
    }
    assert manifest.normalization.expression == "median-log1p"


def test_the_bank_encodes_each_spot_independently(network: Bleep, bundle: Path, small: Small) -> None:
    """Equals Scanpy's normalization and the projection head in float64 numpy."""
    p = {name: t.double().numpy() for name, t in network.state_dict().items() if name.startswith("spot_")}
    tables = [
        np.loadtxt(small.folder / "counts" / f"{s}.tsv", skiprows=1, usecols=range(1, GENES + 1))
        for s in ("A1", "A2")
    ]
    expression = np.concatenate([np.log1p(c / c.sum(1, keepdims=True) * np.median(c.sum(1))) for c in tables])
    projected = expression @ p["spot_projection.projection.weight"].T + p["spot_projection.projection.bias"]
    gelu = 0.5 * projected * (1 + scipy.special.erf(projected / np.sqrt(2)))
    mixed = gelu @ p["spot_projection.fc.weight"].T + p["spot_projection.fc.bias"] + projected
    centered = mixed - mixed.mean(1, keepdims=True)
    embedding = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-5)
    embedding = embedding * p["spot_projection.layer_norm.weight"] + p["spot_projection.layer_norm.bias"]
    bank = open_bundle(bundle).bank
    assert np.abs(bank.expression - expression).max() < 1e-6
    assert np.abs(bank.embedding - embedding).max() < 1e-4


def test_the_later_preprocessing_is_an_option(
    network: Bleep, ckpt: Path, small: Small, tmp_path: Path
) -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    preprocessing = {"pixel_range": "0-1", "mean": mean, "std": std}
    change = {"tile": {"size_px": TILE_PX}, "retrieval": {"k": 3}, "preprocessing": preprocessing}
    exported = export_bundle(
        ckpt, tmp_path / "b", references=[small.folder], overrides=change, parity_tiles=4
    )
    assert exported.manifest.preprocessing.channels == "bgr"
    tiles = np.random.default_rng(0).integers(0, 256, (3, TILE_PX, TILE_PX, 3), dtype=np.uint8)
    scaled = (tiles[..., ::-1] / 255.0 - np.array(mean)) / np.array(std)
    with torch.no_grad():
        expected = network.encode_tiles(torch.from_numpy(scaled).permute(0, 3, 1, 2).float()).numpy()
        assert torch.allclose(
            preprocess(tiles, exported.manifest.preprocessing).double(),
            torch.from_numpy(scaled).permute(0, 3, 1, 2),
            atol=1e-5,
        )
    embedding = open_session(exported.encoder_path, "cpu").encode(tiles)
    assert np.abs(embedding - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_from_bundle_to_map(bundle: Path, small: Small, tmp_path: Path) -> None:
    words = [str(small.slide), "--spots", str(small.spots), "--bundle", str(bundle), "--out"]
    result = CliRunner().invoke(main, [*words, str(tmp_path / "map.h5ad"), "--no-picture", "-q"])
    assert result.exit_code == 0, result.output
    predicted = anndata.read_h5ad(tmp_path / "map.h5ad")
    bank = open_bundle(bundle).bank
    assert predicted.shape == (24, GENES) and np.isfinite(predicted.X).all()
    assert (predicted.obs["effective_k"] == 9).all()  # a plain mean of nine
    assert predicted.X.min() >= bank.expression.min() and predicted.X.max() <= bank.expression.max()
    assert predicted.uns["mclst"]["bundle"]["system"] == "bleep"


def test_settings_of_a_spot_encoder_do_not_apply(ckpt: Path, small: Small, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"heads": 4}, "heads"),
        ({"context": {"spots": 8}}, "context.spots"),
    ]
    for change, word in cases:
        with pytest.raises(CheckpointError, match=f"is BLEEP, to which the setting {word} does not apply"):
            export_bundle(ckpt, tmp_path / "b", references=[small.folder], overrides=change)
    assert not (tmp_path / "b").exists()


def test_system_overrides_recognition_and_names_a_missing_tensor(ckpt: Path) -> None:
    assert open_checkpoint(ckpt, "bleep").system.name == "bleep"
    with pytest.raises(CheckpointError, match=r"is no mclSTExp checkpoint"):
        open_checkpoint(ckpt, "mclstexp")
    with pytest.raises(CheckpointError, match=r"no system 'blip'; choose one of bleep"):
        open_checkpoint(ckpt, "blip")
