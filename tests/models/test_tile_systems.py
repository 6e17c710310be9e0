"""mclSTExp, BLEEP and ST-Net: torch and the graph, at once or in batches, agree for any number of tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_systems import randomize_norms
from system_cases import small_network
from torch import nn

from mclst.export.onnx.graph import write_graph
from mclst.models.bleep import Bleep
from mclst.models.mclstexp import MclSTExp
from mclst.runtime.bundle.manifest import Preprocessing, Tile
from mclst.runtime.providers.opening import open_session

pytestmark = pytest.mark.usefixtures("short_stnet")
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)
# System: network, tile px, preprocessing. DenseNet needs 32 px.
CASES: dict[str, tuple[Any, int, Preprocessing]] = {
    "mclstexp": (
        lambda: MclSTExp("resnet18", 6, projection_dim=16, heads=2, head_dim=4, depth=1, positions=4),
        16,
        Preprocessing(),
    ),
    "bleep": (
        lambda: Bleep("resnet18", 6, projection_dim=16),
        16,
        Preprocessing(channels="bgr", pixel_range="0-255"),
    ),
    "stnet": (lambda: small_network("stnet"), 32, Preprocessing(mean=MEAN, std=STD)),
}

DISTINCT = 184
"""Many tiles repeat these in random order: torch encodes each once."""


@pytest.fixture(scope="module", params=sorted(CASES))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, nn.Module, Path]:
    name = request.param
    make, size, settings = CASES[name]
    torch.manual_seed(6)
    network = randomize_norms(make())
    path = tmp_path_factory.mktemp(name) / "encoder.onnx"
    write_graph(network, Tile(size_px=size), settings, path)
    return name, network, path


@pytest.mark.parametrize("n", [1, 7, 184, 500])
def test_torch_and_the_graph_agree(exported: tuple[str, nn.Module, Path], n: int) -> None:
    name, network, path = exported
    _, size, settings = CASES[name]
    rng = np.random.default_rng(n)
    distinct = rng.integers(0, 256, (min(n, DISTINCT), size, size, 3), dtype=np.uint8)
    rows = np.arange(n) if n <= DISTINCT else rng.integers(0, DISTINCT, n)
    tiles = distinct[rows]
    # By hand: channel order, range, mean and std.
    pixels = distinct[..., ::-1] if settings.channels == "bgr" else distinct
    scaled = pixels.astype(np.float32) / (255 if settings.pixel_range == "0-1" else 1)
    scaled = (scaled - np.asarray(settings.mean, np.float32)) / np.asarray(settings.std, np.float32)
    with torch.inference_mode():
        inputs = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
        expected = network.encode_tiles(inputs).numpy()[rows]  # type: ignore[operator]
    session = open_session(path, "cpu", threads=1)
    streamed = np.concatenate([session.encode(tiles[i : i + 48]) for i in range(0, n, 48)])
    assert streamed.shape == (n, expected.shape[1])
    bound = 1e-4 * max(1.0, float(np.abs(expected).max()))
    assert np.abs(streamed - expected).max() < bound
    if n <= 184:
        assert np.abs(session.encode(tiles) - expected).max() < bound
