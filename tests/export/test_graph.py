"""The exported graph equals its network for every encoder and preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_model import tiny_network

from mclst.export.onnx.graph import FoldedEncoder, preprocess, write_graph
from mclst.runtime.bundle.manifest import Preprocessing, Tile
from mclst.runtime.providers.opening import open_session

BGR = Preprocessing(channels="bgr", pixel_range="0-255")
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def tiles(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("encoder", "size", "settings"),
    [
        ("resnet18", 32, Preprocessing()),
        ("resnet18", 32, BGR),
        ("resnet18", 32, IMAGENET),
        ("densenet121", 64, IMAGENET),
        ("vit_base_patch32_224", 224, Preprocessing()),
    ],
)
def test_graph_equals_network_at_any_batch(
    tmp_path: Path, encoder: str, size: int, settings: Preprocessing
) -> None:
    network = tiny_network(encoder)
    path = tmp_path / "encoder.onnx"
    write_graph(network, Tile(size_px=size), settings, path)
    session = open_session(path, "cpu")
    for n in (1, 2, 5):
        batch = tiles(n, size)
        with torch.no_grad():
            expected = network.encode_tiles(preprocess(batch, settings)).numpy()
        assert np.abs(session.encode(batch) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_preprocess_equals_the_published_scripts() -> None:
    batch = tiles(2, 8)
    plain = batch.astype(np.float64).transpose(0, 3, 1, 2)
    assert np.abs(preprocess(batch, Preprocessing()).numpy() - plain / 255).max() < 1e-7
    assert np.array_equal(preprocess(batch, BGR).numpy(), plain[:, ::-1])
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    assert np.abs(preprocess(batch, IMAGENET).numpy() - (plain / 255 - mean) / std).max() < 1e-5


def test_norm5_folds_exactly() -> None:
    network = tiny_network("densenet121").double()
    pixels = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    folded = FoldedEncoder(network).double().eval()
    assert "norm5" not in dict(folded.trunk.named_children())
    with torch.no_grad():
        assert torch.allclose(folded.encode_tiles(pixels), network.encode_tiles(pixels), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "encoder.onnx"
    write_graph(tiny_network(), Tile(size_px=32), BGR, path)
    return path


def test_graph_takes_uint8_and_casts_before_it_transposes(graph: Path) -> None:
    model = onnx.load(graph)
    assert [node.op_type for node in model.graph.node[:3]] == ["Cast", "Transpose", "Gather"]
    (pixels,) = onnxruntime.InferenceSession(str(graph)).get_inputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("tiles", "tensor(uint8)", ["N", 32, 32, 3])
    assert {opset.version for opset in model.opset_import if not opset.domain} == {18}


def test_graph_contains_no_paths_of_the_exporting_machine(graph: Path) -> None:
    content = graph.read_bytes()
    assert b".py" not in content and b"site-packages" not in content
    assert not any(entry.name != graph.name for entry in graph.parent.iterdir())
