"""Encoders of the table at full width with two blocks: torch against ONNX Runtime, on tiles of any size."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mclst.export.onnx.graph import preprocess, write_graph
from mclst.models.recipes.build import build_encoder
from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.recipe import Recipe
from mclst.models.recipes.resize import fit_tiles
from mclst.runtime.bundle.manifest import Preprocessing, Tile
from mclst.runtime.providers.opening import open_session

TILE_PX = 240
"""Of tiles as they come, which every recipe resizes."""


def two_blocks(name: str) -> Recipe:
    """The recipe with two blocks; convolutional networks stay whole."""
    recipe = find_recipe(name)
    if recipe.architecture.startswith("swin"):
        return replace(recipe, arguments={**recipe.arguments, "depths": (2, 1, 1, 1)})
    if recipe.architecture.startswith("vit"):
        return replace(recipe, arguments={**recipe.arguments, "depth": 2})
    return recipe


def recipe_sha256(recipe: Recipe) -> str:
    """Hash of all that a recipe says, so that a result tells which recipe it is of."""
    return hashlib.sha256(json.dumps(recipe.record(), sort_keys=True).encode()).hexdigest()


class RandomEncoder(nn.Module):
    """A recipe's encoder with random weights, behind what fits tiles to it."""

    def __init__(self, recipe: Recipe, fit: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.fit = fit
        self.encoder = build_encoder(recipe)
        for weight in self.encoder.parameters():
            # A new layer scale of 1e-5 would hide the blocks.
            if weight.ndim == 1 and float(weight.detach().abs().max()) < 1e-3:
                weight.data.uniform_(0.2, 1.0)

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, S, S], preprocessed → float32 [N, width]."""
        out: Tensor = self.encoder(self.fit(tiles))
        return out


def export_two_blocks(name: str, pixels: NDArray[np.uint8], folder: Path) -> tuple[Path, NDArray[np.float32]]:
    """Write a recipe's graph with two blocks; also return what torch makes of tiles [N, S, S, 3]."""
    recipe = two_blocks(name)
    fit = fit_tiles(TILE_PX, recipe.resize_px, recipe.tile_px, recipe.interpolation)
    network = RandomEncoder(recipe, fit).eval().requires_grad_(False)
    settings = Preprocessing(mean=recipe.mean, std=recipe.std)
    path = folder / "encoder.onnx"
    write_graph(network, Tile(size_px=TILE_PX), settings, path)
    with torch.inference_mode():
        return path, network.encode_tiles(preprocess(pixels, settings)).numpy()


def relative_difference(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def measure_two_blocks(name: str, pixels: NDArray[np.uint8], folder: Path) -> dict[str, Any]:
    """Compare torch with ONNX Runtime.

    Returns
    -------
    dict
        name; recipe_sha256; relative_difference; between_tiles, the same between what torch gives for the
        first two tiles, which a constant output would lack.
    """
    path, expected = export_two_blocks(name, pixels, folder)
    actual = open_session(path, "cpu").encode(pixels)
    return {
        "name": name,
        "recipe_sha256": recipe_sha256(find_recipe(name)),
        "relative_difference": relative_difference(actual, expected),
        "between_tiles": relative_difference(expected[:1], expected[1:2]),
    }
