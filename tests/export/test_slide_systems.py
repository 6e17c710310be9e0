"""HisToGene, Hist2ST and THItoGene: layers against independent float64 code, torch against both graphs."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf
from small_model import GENES
from system_cases import SYSTEM_CASES, small_network
from torch import nn

from mclst.export.direct_bundle import predict_with_checkpoint
from mclst.export.engines import EngineBuilder, EngineOptions
from mclst.export.inputs.checkpoint import open_checkpoint
from mclst.export.onnx.graph import preprocess, write_graph
from mclst.export.onnx.slide_graph import write_slide_graph
from mclst.models.thitogene import GraphAttention
from mclst.runtime.bundle.manifest import Graph, Preprocessing, SlideNetwork, Tile
from mclst.runtime.inference.slide_network import SlideNetworkSession
from mclst.runtime.inference.spot_graph import nearest_spots
from mclst.runtime.providers.opening import open_session

X_MAJOR = Preprocessing(pixel_range="0-255", axes="x-major")
GRAPHS: dict[str, Graph | None] = {
    "histogene": None,
    "hist2st": Graph(neighbors=4, prune="grid"),
    "thitogene": Graph(neighbors=4, prune="none"),
}
HEADS = {"histogene": 4, "hist2st": 4, "thitogene": 2}


def tiles(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def positions(n: int, seed: int = 0) -> np.ndarray:
    """Distinct array coordinates below 64, some without a near neighbor."""
    cells = np.random.default_rng(seed).permutation(64 * 64)[:n]
    return np.stack([cells % 64, cells // 64], axis=1)


def adjacency(neighbors: np.ndarray, linked: np.ndarray) -> np.ndarray:
    dense = np.zeros((len(neighbors), len(neighbors)))
    for row, (row_neighbors, link) in enumerate(zip(neighbors, linked, strict=True)):
        dense[row, row_neighbors[link > 0]] = 1
    return dense


def weights(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: t.double().numpy() for name, t in network.state_dict().items()}


def norm(x: np.ndarray, p: dict[str, np.ndarray], name: str) -> Any:
    centered = x - x.mean(-1, keepdims=True)
    return (
        centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"]
        + p[f"{name}.bias"]
    )


def softmax(x: np.ndarray, axis: int) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def block(h: np.ndarray, p: dict[str, np.ndarray], attn: str, ff: str, heads: int) -> Any:
    """A pre-norm Transformer block that materializes all scores."""
    q, k, v = np.split(norm(h, p, f"{attn}.norm") @ p[f"{attn}.fn.to_qkv.weight"].T, 3, axis=1)
    d = q.shape[1] // heads
    parts = [np.s_[:, i * d : (i + 1) * d] for i in range(heads)]
    mixed = np.concatenate([softmax(q[s] @ k[s].T / np.sqrt(d), 1) @ v[s] for s in parts], axis=1)
    h = h + mixed @ p[f"{attn}.fn.to_out.0.weight"].T + p[f"{attn}.fn.to_out.0.bias"]
    inner = norm(h, p, f"{ff}.norm") @ p[f"{ff}.fn.net.0.weight"].T + p[f"{ff}.fn.net.0.bias"]
    inner = 0.5 * inner * (1 + erf(inner / np.sqrt(2)))
    return h + inner @ p[f"{ff}.fn.net.3.weight"].T + p[f"{ff}.fn.net.3.bias"]


def layers(h: np.ndarray, p: dict[str, np.ndarray], depth: int, heads: int) -> Any:
    for i in range(depth):
        at = f"vit.transformer.layers.{i}"
        h = block(h, p, f"{at}.0", f"{at}.1", heads)
    return h


def histogene(p: dict[str, np.ndarray], f: np.ndarray, xy: np.ndarray, dense: np.ndarray) -> Any:
    h = layers(f + p["x_embed.weight"][xy[:, 0]] + p["y_embed.weight"][xy[:, 1]], p, 2, 4)
    return norm(h, p, "gene_head.0") @ p["gene_head.1.weight"].T + p["gene_head.1.bias"]


def hist2st(p: dict[str, np.ndarray], f: np.ndarray, xy: np.ndarray, dense: np.ndarray) -> Any:
    h = f + p["x_embed.weight"][xy[:, 0]] + p["y_embed.weight"][xy[:, 1]]
    t = "vit.transformer"
    for i in range(2):
        h = block(h, p, f"{t}.layer2.{i}.attn", f"{t}.layer2.{i}.ff", 4)
    steps = []
    for i in range(3):
        mean = dense / np.maximum(dense.sum(1, keepdims=True), 1) @ h
        h = np.maximum(p[f"{t}.layer3.{i}.weight"] @ mean.T, 0).T
        h = h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)
        steps.append(h)
    # torch's own LSTM in float64; the module under test uses matrix products.
    lstm = nn.LSTM(h.shape[1], h.shape[1], 2).double()
    inside = f"{t}.jknet.0."
    lstm.load_state_dict(
        {k.removeprefix(inside): torch.from_numpy(v) for k, v in p.items() if k.startswith(inside)}
    )
    with torch.no_grad():
        h = lstm(torch.from_numpy(np.stack(steps)))[0].mean(0).numpy()
    return norm(h, p, "gene_head.0") @ p["gene_head.1.weight"].T + p["gene_head.1.bias"]


def published_gat(p: dict[str, np.ndarray], at: str, h: np.ndarray, dense: np.ndarray) -> Any:
    """Dense attention with the mask of -9e15 and the softmax over columns."""
    wh, a = h @ p[f"{at}.W"], p[f"{at}.a"]
    e = wh @ a[: wh.shape[1]] + (wh @ a[wh.shape[1] :]).T
    return softmax(np.where(dense > 0, np.where(e > 0, e, 0.01 * e), -9e15), 0) @ wh


def elu(x: np.ndarray) -> Any:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def thitogene(p: dict[str, np.ndarray], f: np.ndarray, xy: np.ndarray, dense: np.ndarray) -> Any:
    h = np.concatenate([f, p["x_embed.weight"][xy[:, 0]], p["y_embed.weight"][xy[:, 1]]], axis=1)
    h = layers(h, p, 1, 2)
    h = np.concatenate([elu(published_gat(p, f"gat.attention_{i}", h, dense)) for i in range(2)], axis=1)
    h = elu(published_gat(p, "gat.out_att", h, dense))
    h = np.maximum(h @ p["gene_head.0.weight"].T + p["gene_head.0.bias"], 0)
    return norm(h, p, "gene_head.2") @ p["gene_head.3.weight"].T + p["gene_head.3.bias"]


ORACLES = {"histogene": histogene, "hist2st": hist2st, "thitogene": thitogene}


@pytest.fixture(scope="module", params=sorted(GRAPHS))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Path]:
    """Name, network rebuilt from its checkpoint, and folder of its two graphs."""
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    tile_px, graph = SYSTEM_CASES[name][1], GRAPHS[name]
    torch.save({"state_dict": small_network(name).state_dict(), "epoch": 3}, folder / "last.ckpt")
    checkpoint = open_checkpoint(folder / "last.ckpt")
    assert checkpoint.system.name == name and checkpoint.positions == 64
    network = checkpoint.network(heads=HEADS[name])
    write_graph(network, Tile(size_px=tile_px), X_MAJOR, folder / "encoder.onnx")
    write_slide_graph(network, checkpoint.traits, graph, folder / "slide.onnx")
    return name, network, folder


@pytest.mark.parametrize("n", [1, 7, 184, 600])
def test_torch_and_graph_equal_float64_over_a_slide(exported: tuple[str, Any, Path], n: int) -> None:
    name, network, folder = exported
    graph = GRAPHS[name]
    width = network.x_embed.weight.shape[1] if name != "thitogene" else 24
    features = np.random.default_rng(n).normal(size=(n, width)).astype(np.float32)
    xy = positions(n)
    settings = SlideNetwork(heads=HEADS[name], depth=1, positions=64, graph=graph)
    in_torch = predict_with_checkpoint(network, features, xy, settings)
    in_graph = SlideNetworkSession(folder / "slide.onnx", settings, "cpu", threads=1).predict_expression(
        features, xy
    )
    dense = adjacency(*nearest_spots(xy, graph)) if graph else np.zeros((0, 0))
    expected = ORACLES[name](weights(network), features.astype(np.float64), xy, dense)
    assert in_graph.shape == expected.shape == (n, GENES) and np.ptp(expected) > 0.1
    assert np.abs(in_torch - expected).max() < 1e-4
    assert np.abs(in_graph - expected).max() < 1e-4


@pytest.mark.parametrize("n", [1, 7])
def test_the_image_graph_uses_the_published_pixel_order(exported: tuple[str, Any, Path], n: int) -> None:
    name, network, folder = exported
    batch = tiles(n, SYSTEM_CASES[name][1])
    with torch.no_grad():
        expected = network.encode_tiles(preprocess(batch, X_MAJOR)).numpy()
    features = open_session(folder / "encoder.onnx", "cpu").encode(batch)
    assert np.abs(features - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    if name == "histogene":
        # The published slice of an [x, y, channel] image, flattened: x slowest, channel fastest.
        flat = batch.transpose(0, 2, 1, 3).reshape(n, -1).astype(np.float64)
        p = weights(network)
        by_hand = flat @ p["patch_embedding.weight"].T + p["patch_embedding.bias"]
        assert np.abs(features - by_hand).max() < 1e-4 * np.abs(by_hand).max()


@pytest.mark.parametrize("n", [1, 7, 184, 600])
def test_streamed_tiles_equal_the_network(exported: tuple[str, Any, Path], n: int) -> None:
    """Tiles pass the encoder in uneven batches, then all features pass the slide graph."""
    name, network, folder = exported
    distinct = tiles(min(n, 184), SYSTEM_CASES[name][1])  # torch encodes each once
    rows = np.arange(n) if n <= 184 else np.random.default_rng(n).integers(0, 184, n)
    batch = distinct[rows]
    session = open_session(folder / "encoder.onnx", "cpu", threads=1)
    cuts = [0, 1, 5, *range(53, n, 48), n] if n > 5 else [0, n]
    streamed = np.concatenate([session.encode(batch[a:b]) for a, b in itertools.pairwise(cuts)])
    settings = SlideNetwork(heads=HEADS[name], depth=1, positions=64, graph=GRAPHS[name])
    expression = SlideNetworkSession(folder / "slide.onnx", settings, "cpu").predict_expression(
        streamed, positions(n)
    )
    with torch.no_grad():
        parts = np.array_split(distinct, -(-len(distinct) // 100))
        encoded = torch.cat([network.encode_tiles(preprocess(part, X_MAJOR)) for part in parts]).numpy()
    features = encoded[rows]
    expected = predict_with_checkpoint(network, features, positions(n), settings)
    assert expression.shape == (n, GENES) and np.abs(expression - expected).max() < 1e-4


def test_the_slide_graph_loops_over_queries_in_standard_operators(
    exported: tuple[str, Any, Path],
) -> None:
    import onnx

    model = onnx.load(exported[2] / "slide.onnx")
    assert {opset.domain for opset in model.opset_import} == {""}
    assert "Scan" in {node.op_type for node in model.graph.node}
    inputs = {i.name: i.type.tensor_type.shape.dim[0].dim_param for i in model.graph.input}
    assert set(inputs.values()) == {"N"}


def test_a_spot_without_neighbors_affects_no_other() -> None:
    """The published 0/0 makes every spot NaN; a degree of at least 1 changes no other value."""
    network = small_network("hist2st")
    xy = np.array([[2, 2], [3, 2], [2, 3], [3, 3], [40, 40]])
    graph = Graph(neighbors=4, prune="grid")
    linked = nearest_spots(xy, graph)[1]
    assert linked.sum(1).tolist() == [3, 3, 3, 3, 0]
    features = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    settings = SlideNetwork(heads=4, depth=2, positions=64, graph=graph)
    expression = predict_with_checkpoint(network, features, xy, settings)
    assert np.isfinite(expression).all()
    published = torch.from_numpy(adjacency(*nearest_spots(xy, graph)))
    assert torch.isnan(published / published.sum(1, keepdim=True) @ torch.ones(5, 1).double())[4]


def test_dynamic_convolution_equals_the_grouped_one() -> None:
    """The published form has one group per tile."""
    network = small_network("thitogene")
    conv = network.odconv2d.double()
    x = torch.rand(3, 3, 112, 112, dtype=torch.float64) * 255
    by_channel, by_filter, by_cell, by_kernel = conv.attention(x)
    kernels = by_cell.reshape(3, 1, 1, 1, 4, 4) * by_kernel.reshape(3, 4, 1, 1, 1, 1) * conv.weight
    grouped = nn.functional.conv2d(
        (x * by_channel).reshape(1, -1, 112, 112), kernels.sum(1).reshape(-1, 3, 4, 4), stride=4, groups=3
    )
    expected = grouped.reshape(3, 16, 28, 28) * by_filter
    assert torch.allclose(conv(x), expected, rtol=1e-12, atol=1e-9)


def test_capsules_equal_the_published_formulas() -> None:
    network = small_network("thitogene")
    routing = network.caps_layer.digit_caps.double()
    x = np.random.default_rng(1).normal(size=(5, 16, 8))
    w, b = routing.W.detach().numpy(), routing.b.detach().numpy()
    u = np.einsum("nji,kjiz->nkjz", x, w)
    c = np.einsum("...ij,...kj->...i", u, u)[..., None]
    share = softmax(c / np.sqrt(8), 1) + b
    s = (u * share).sum(-2)
    size = np.linalg.norm(s, axis=-1, keepdims=True)
    expected = (1 - 1 / (np.exp(size) + 1e-20)) * (s / (size + 1e-20))
    with torch.no_grad():
        assert np.abs(routing(torch.from_numpy(x)).numpy() - expected).max() < 1e-12


def test_graph_attention_is_finite_in_half_precision() -> None:
    """A fully masked column would be NaN, since -9e15 is -inf in half precision."""
    torch.manual_seed(0)
    layer = GraphAttention(8, 4).half()
    neighbors = torch.tensor([[1], [2], [1]])  # spot 0 is nobody's neighbor
    linked = torch.ones(3, 1).half()
    h = torch.randn(3, 8).half() * 8
    with torch.no_grad():
        attended = layer(h, neighbors, linked).double().numpy()
    p = {f"g.{k}": v.double().numpy() for k, v in layer.state_dict().items()}
    expected = published_gat(p, "g", h.double().numpy(), adjacency(neighbors.numpy(), linked.numpy()))
    assert np.isfinite(attended).all() and np.abs(attended - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("prune", ["none", "grid", "std"])
@pytest.mark.parametrize("n", [1, 2, 4, 60])
def test_neighbors_equal_the_published_graph(prune: str, n: int) -> None:
    """The published loop over spots, with a stable sort."""
    xy = positions(n, seed=n) // (1 if n < 60 else 7)
    xy = np.unique(xy, axis=0)
    n = len(xy)
    neighbors, linked = nearest_spots(xy, Graph(neighbors=4, prune=prune))  # type: ignore[arg-type]
    for i in range(n):
        distance = np.sqrt(((xy - xy[i]) ** 2).sum(1))
        order = [j for j in np.argsort(distance, kind="stable") if j != i][:4]
        boundary = distance[order].mean() + distance[order].std() if order else 0
        limit = {"none": np.inf, "grid": 2.0, "std": boundary}[prune]
        assert neighbors[i][linked[i] > 0].tolist() == [j for j in order if distance[j] <= limit]
        assert (neighbors[i][linked[i] == 0] == i).all()


def test_tensorrt_rtx_builds_the_encoder_and_reports_the_slide_graph(
    exported: tuple[str, Any, Path], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    folder = exported[2]
    for graph in ("encoder.onnx", "slide.onnx"):
        shutil.copy(folder / graph, tmp_path / graph)
    messages: list[str] = []
    EngineBuilder(EngineOptions("tensorrt-rtx", max_batch=4, targets=("sm_86",))).build(
        tmp_path, messages.append
    )
    (engine,) = (tmp_path / "engines").iterdir()
    assert (engine / "engine.plan").stat().st_size > 0
    (note,) = [line for line in messages if "slide.onnx" in line]
    assert "ONNX Runtime runs it, on cuda if available and else on cpu" in note
