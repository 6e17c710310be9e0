"""Encoders of every family, at full width with two blocks, compute in ONNX Runtime what torch computes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from mclst.benchmarks.recipes.two_blocks import (
    TILE_PX,
    export_two_blocks,
    recipe_sha256,
    relative_difference,
)
from mclst.export.onnx import large_weights
from mclst.export.onnx.fp16 import to_half
from mclst.export.onnx.graph import save
from mclst.export.parity.tiles import synthetic_tiles
from mclst.models.recipes.find import RECIPES
from mclst.runtime.bundle.manifest import Tile
from mclst.runtime.providers.opening import open_session

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "recipes-two-blocks.json"
FAMILIES = {
    "registers, SwiGLU and class token + mean": "virchow2",
    "an attention pooler with a projection": "omiclip",
    "an attention pooler over normalized tokens": "conch",
    "shifted windows": "ctranspath",
}


def traced(name: str, folder: Path) -> tuple[Path, NDArray[np.uint8], NDArray[np.float32]]:
    pixels = synthetic_tiles(Tile(size_px=TILE_PX), 3).pixels
    path, expected = export_two_blocks(name, pixels, folder)
    return path, pixels, expected


@pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES.keys())
def test_onnx_equals_torch(name: str, tmp_path: Path) -> None:
    path, pixels, expected = traced(name, tmp_path)
    # Tiles differ, so that a constant output would show.
    assert relative_difference(expected[:1], expected[1:2]) > 1e-3
    assert relative_difference(open_session(path, "cpu").encode(pixels), expected) < 1e-4
    kinds = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    # Position embeddings are constants, and no size is computed but that of the batch.
    assert not {"Resize", "Loop", "If", "Range"} & kinds.keys()
    assert kinds["Shape"] <= 2


def test_every_recipe_was_compared_on_real_tiles_as_it_is_today() -> None:
    """Two blocks of every recipe take minutes: a command compares them, and its result is committed."""
    document = json.loads(RESULT.read_text())
    assert "C4" in document["settings"]["tiles"] and document["settings"]["count"] >= 3
    results = {item["name"]: item for item in document["results"]}
    command = (
        "mclst-bench recipes --two-blocks --slide SLIDE --json benchmarks/results/recipes-two-blocks.json"
    )
    assert results.keys() == RECIPES.keys(), f"run: {command}"
    for name, item in results.items():
        assert item["recipe_sha256"] == recipe_sha256(RECIPES[name]), f"{name} has changed; run: {command}"
        assert item["relative_difference"] < 1e-4 and item["between_tiles"] > 1e-3, name


def test_large_weights_go_beside_the_graph_in_every_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of graphs above 2 GiB, on a small one whose tiles are resized and cropped."""
    monkeypatch.setattr(large_weights, "EXTERNAL_DATA_BYTES", 1 << 20)
    path, pixels, expected = traced("gigapath-flash", tmp_path)
    data = tmp_path / "encoder.onnx.data"
    assert path.stat().st_size < 1 << 20 < data.stat().st_size
    assert relative_difference(open_session(path, "cpu").encode(pixels), expected) < 1e-4
    fp32 = onnx.load(path, load_external_data=False)
    for precision, limit in (("fp16", 0.01), ("bf16", 0.06)):
        rounded = tmp_path / f"rounded.{precision}.onnx"
        save(to_half(fp32, precision, rounded=True, folder=tmp_path).model, rounded)  # type: ignore[arg-type]
        typed = to_half(fp32, precision, folder=tmp_path)  # type: ignore[arg-type]
        # Norms and softmax keep fp32; every product is half.
        assert {"LayerNormalization", "Softmax", "Sigmoid"} <= typed.kept.keys()
        assert not {"MatMul", "Conv", "Gemm"} & typed.kept.keys()
        save(typed.model, tmp_path / f"encoder.{precision}.onnx")
        assert 0 < relative_difference(open_session(rounded, "cpu").encode(pixels), expected) < limit
    half = open_session(tmp_path / "encoder.fp16.onnx", "cpu").encode(pixels)
    assert 0 < relative_difference(half, expected) < 0.01
    assert (tmp_path / "encoder.fp16.onnx.data").stat().st_size < 0.6 * data.stat().st_size
