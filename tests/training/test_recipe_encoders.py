"""mclSTExp and BLEEP with an encoder from a recipe: its preprocessing, its weights, frozen or trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from small_model import Small
from training_runs import run

from mclst.export.bundling import export_bundle
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.providers.opening import open_session
from mclst.training.cli import main
from mclst.training.options import build_config, resolve_options

RECIPE = """\
name: my-vit
builder: timm
architecture: vit_tiny_patch16_224
arguments: {img_size: 32, embed_dim: 48, num_heads: 3, depth: 1, reg_tokens: 2, no_embed_class: true}
pooling: cls+mean
width: 96
tile_px: 32
resize_px: 36
interpolation: bicubic
mean: [0.7, 0.6, 0.7]
std: [0.2, 0.25, 0.2]
license: CC0-1.0
"""
PREFIX = "image_encoder.model."


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A folder with recipe.yaml and its weights."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    torch.manual_seed(11)
    network = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        embed_dim=48,
        num_heads=3,
        depth=1,
        reg_tokens=2,
        no_embed_class=True,
    )
    torch.save(
        {"model": {f"module.{n}": t for n, t in network.state_dict().items()}}, tmp_path / "weights.pth"
    )
    return tmp_path


@pytest.mark.parametrize(("system", "frozen"), [("mclstexp", True), ("bleep", False)])
def test_a_recipe_is_the_image_encoder(encoder: Path, small: Small, system: str, frozen: bool) -> None:
    out = encoder / "model.pt"
    words = ["--encoder", encoder / "recipe.yaml", "--weights", encoder / "weights.pth", "--system", system]
    words += ["--frozen"] if frozen else []
    # Tiles of 40 px are resized to 36 and cut to 32 within the graph.
    words += [
        "--tile-px",
        40,
        "--k",
        10,
        "--epochs",
        2,
        "--projection-dim",
        8,
        "--json",
        encoder / "run.json",
    ]
    result = run(small.folder, *words, "--out", out)
    assert result.exit_code == 0, result.output
    assert "my-vit from weights.pth" in result.stderr
    checkpoint = torch.load(out, weights_only=True)
    before = torch.load(encoder / "weights.pth", weights_only=True)["model"]
    trained = {n.removeprefix(PREFIX): t for n, t in checkpoint["model"].items() if n.startswith(PREFIX)}
    assert set(trained) == {name.removeprefix("module.") for name in before if "head" not in name}
    same = [torch.equal(tensor, before[f"module.{name}"]) for name, tensor in trained.items()]
    assert all(same) if frozen else not any(same[:3])
    assert json.loads((encoder / "run.json").read_text())["settings"]["preprocessing"]["mean"] == [
        0.7,
        0.6,
        0.7,
    ]

    # The checkpoint holds its recipe: neither file is needed any more.
    (encoder / "recipe.yaml").unlink()
    bundle = export_bundle(out, encoder / "bundle", parity_tiles=8)
    manifest = open_bundle(bundle.path).manifest
    assert manifest.encoder.name == "my-vit" and manifest.tile.size_px == 40
    assert manifest.preprocessing.mean == (0.7, 0.6, 0.7) and manifest.preprocessing.channels == "rgb"
    parity = json.loads((bundle.path / "parity.json").read_text())
    assert parity["embedding"]["cosine_min"] > 0.99999
    assert open_session(bundle.encoder(), "cpu").encode(checkpoint["tiles"].numpy()).shape == (64, 8)


@pytest.mark.parametrize(
    ("words", "mpp"),
    [
        ("--encoder uni", 128 / 224),
        ("--encoder gigapath", 128 / 256),  # its input is the center of a tile of 256 px
        ("--encoder gigapath --tile-px 512", 128 / 512),
        ("--encoder uni --tile-mpp 0.5 --system bleep", 0.5),
        ("--encoder omiclip", None),
        ("--encoder resnet50", None),
    ],
)
def test_tiles_show_the_tissue_that_the_recipe_prescribes(words: str, mpp: float | None) -> None:
    """mclst-train once read level-0 pixels, whatever they measured, where mclst-fit follows the recipe."""
    options = resolve_options(main.make_context("mclst-train", ["sections", *words.split()]))
    assert build_config(options).settings.tile.mpp == mpp


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--encoder", "resnet18", "--weights", "w.pth"], 2, "--weights is for encoders with a recipe"),
        (["--encoder", "uni", "--frozen"], 2, "--frozen keeps random weights without --weights"),
        (
            ["--encoder", "uni", "--init", "w.pth", "--weights", "w.pth"],
            2,
            "--init and --weights are both given",
        ),
        (
            ["--encoder", "kaiko-vits16", "--weights", "weights.pth"],
            4,
            "does not hold the weights of Kaiko ViT-S/16",
        ),
        (["--encoder", "no.yaml"], 4, "no.yaml cannot be read"),
    ],
)
def test_contradictions_are_refused(
    encoder: Path, small: Small, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(encoder)
    result = run(small.folder, *words, "--k", 10, "--epochs", 1)
    assert result.exit_code == code and message in result.stderr, result.output
    assert not (encoder / "model.pt").exists()
