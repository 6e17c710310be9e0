"""Encoders of every family, at full width with two blocks, compute in ONNX Runtime what torch computes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from two_blocks import two_blocks

from mclst.export.onnx import large_weights
from mclst.export.onnx.fp16 import to_half
from mclst.export.onnx.graph import preprocess, save, write_graph
from mclst.export.parity.tiles import synthetic_tiles
from mclst.models.recipes.build import build_encoder
from mclst.models.recipes.recipe import Recipe
from mclst.models.recipes.resize import fit_tiles
from mclst.runtime.bundle.manifest import Preprocessing, Tile
from mclst.runtime.inference.providers import open_session

TILE_PX = 240
"""Of tiles as they come, which every recipe here resizes to 224 or to 256."""
FAMILIES = {
    "registers, SwiGLU and class token + mean": "virchow2",
    "an attention pooler with a projection": "omiclip",
    "shifted windows": "ctranspath",
}


class Tiles(nn.Module):
    """An encoder behind the resize and crop of its recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.fit = fit_tiles(TILE_PX, recipe.resize_px, recipe.tile_px, recipe.interpolation)
        self.encoder = build_encoder(recipe)
        for weight in self.encoder.parameters():
            # A new layer scale of 1e-5 would hide the blocks.
            if weight.ndim == 1 and float(weight.detach().abs().max()) < 1e-3:
                weight.data.uniform_(0.2, 1.0)

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.fit(tiles))
        return out


def traced(name: str, folder: Path) -> tuple[Path, Tiles, NDArray[np.uint8], NDArray[np.float32]]:
    recipe = two_blocks(name)
    network, tile = Tiles(recipe), Tile(size_px=TILE_PX)
    settings = Preprocessing(mean=recipe.mean, std=recipe.std)
    write_graph(network, tile, settings, folder / "encoder.onnx")
    pixels = synthetic_tiles(tile, 3).pixels
    with torch.inference_mode():
        expected = network.encode_tiles(preprocess(pixels, settings)).numpy()
    return folder / "encoder.onnx", network, pixels, expected


def difference(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES.keys())
def test_onnx_equals_torch(name: str, tmp_path: Path) -> None:
    path, _, pixels, expected = traced(name, tmp_path)
    # Tiles differ, so that a constant output would show.
    assert difference(expected[:1], expected[1:2]) > 1e-3
    assert difference(open_session(path, "cpu").encode(pixels), expected) < 1e-4
    kinds = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    # Position embeddings are constants, and no size is computed but that of the batch.
    assert not {"Resize", "Loop", "If", "Range"} & kinds.keys()
    assert kinds["Shape"] <= 2


def test_large_weights_go_beside_the_graph_in_every_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of graphs above 2 GiB, on a small one whose tiles are resized and cropped."""
    monkeypatch.setattr(large_weights, "EXTERNAL_DATA_BYTES", 1 << 20)
    path, _, pixels, expected = traced("gigapath-flash", tmp_path)
    data = tmp_path / "encoder.onnx.data"
    assert path.stat().st_size < 1 << 20 < data.stat().st_size
    assert difference(open_session(path, "cpu").encode(pixels), expected) < 1e-4
    fp32 = onnx.load(path, load_external_data=False)
    for precision, limit in (("fp16", 0.01), ("bf16", 0.06)):
        rounded = tmp_path / f"rounded.{precision}.onnx"
        save(to_half(fp32, precision, rounded=True, folder=tmp_path).model, rounded)  # type: ignore[arg-type]
        typed = to_half(fp32, precision, folder=tmp_path)  # type: ignore[arg-type]
        # Norms and softmax keep fp32; every product is half.
        assert {"LayerNormalization", "Softmax", "Sigmoid"} <= typed.kept.keys()
        assert not {"MatMul", "Conv", "Gemm"} & typed.kept.keys()
        save(typed.model, tmp_path / f"encoder.{precision}.onnx")
        assert 0 < difference(open_session(rounded, "cpu").encode(pixels), expected) < limit
    half = open_session(tmp_path / "encoder.fp16.onnx", "cpu").encode(pixels)
    assert 0 < difference(half, expected) < 0.01
    assert (tmp_path / "encoder.fp16.onnx.data").stat().st_size < 0.6 * data.stat().st_size
