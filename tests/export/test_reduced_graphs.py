"""Graphs in fp16, bf16 and int8: arithmetic against numpy, and what stays fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from refusals import assert_refused
from small_model import TILE_PX, Small, tiny_network
from system_cases import SYSTEM_CASES, small_network

from mclst.export.cli import main as export_main
from mclst.export.onnx.calibrate import BINS, PERCENTILE, MagnitudeHistogram, calibrate
from mclst.export.onnx.fp16 import captured_names, to_half
from mclst.export.onnx.int8 import find_products, to_int8
from mclst.export.parity.precisions import derive_graphs
from mclst.export.parity.tiles import synthetic_tiles
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.bundle.manifest import Tile
from mclst.runtime.errors import CheckpointError, ReferenceDataError

pytestmark = pytest.mark.usefixtures("short_stnet")


HALVES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def graph(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: tuple[Any, ...], out: tuple[Any, ...]
) -> onnx.ModelProto:
    """A float32 graph from `x` to `embedding`."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, out)],
            [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )


def export(*words: str) -> Result:
    return CliRunner().invoke(export_main, list(words))


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of each tensor."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types_by_name = {
        v.name: v.type.tensor_type.elem_type
        for v in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    return types_by_name | {t.name: t.data_type for t in inferred.initializer}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_rounds_each_half_result(precision: Any) -> None:
    """Two products with a bias between and a mean after: half results are rounded once, the rest is exact."""
    rng = np.random.default_rng(0)
    w, v, b = rng.normal(size=(6, 5)), rng.normal(size=(5, 4)), rng.normal(size=5)
    constants = {
        "w": w.astype(np.float32),
        "v": v.astype(np.float32),
        "b": b.astype(np.float32),
        "axes": np.array([1]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["d"]),
        helper.make_node("ReduceMean", ["d", "axes"], ["embedding"], keepdims=1),
    ]
    model = graph(nodes, constants, ("N", 6), ("N", 1))
    x = rng.normal(size=(7, 6)).astype(np.float32)

    def r(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32).astype(HALVES[precision]).astype(np.float64)

    c = r(r(r(x) @ r(constants["w"])) + r(constants["b"]))
    expected = r(np.maximum(c, 0) @ r(constants["v"])).mean(1, keepdims=True)
    output = run(to_half(model, precision, rounded=True).model, x=x)
    np.testing.assert_allclose(output, expected, rtol=2e-6, atol=1e-6)
    assert np.abs(output - (np.maximum(x @ w + b, 0) @ v).mean(1, keepdims=True)).max() > 1e-5
    typed = to_half(model, precision)
    kinds = types(typed.model)
    half = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    assert (kinds["x"], kinds["embedding"], kinds["a"], kinds["r"], kinds["d"]) == (1, 1, half, half, half)
    assert typed.half == {"MatMul": 2, "Add": 1, "Relu": 1} and typed.kept == {"ReduceMean": 1}
    assert {kinds[name] for node in typed.model.graph.node for name in node.input if name == "w"} == set()
    if precision == "fp16":
        np.testing.assert_allclose(run(typed.model, x=x), expected, atol=4e-3)


def test_a_squash_keeps_its_square_in_fp32() -> None:
    """|v|² of a capsule of length 2,000 is beyond fp16; v / |v| is not."""
    constants = {"w": np.eye(4, dtype=np.float32) * 1000, "axes": np.array([1])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["v"]),
        helper.make_node("Mul", ["v", "v"], ["square"]),
        helper.make_node("ReduceSum", ["square", "axes"], ["sum"], keepdims=1),
        helper.make_node("Sqrt", ["sum"], ["norm"]),
        helper.make_node("Div", ["v", "norm"], ["embedding"]),
    ]
    converted = to_half(graph(nodes, constants, ("N", 4), ("N", 4)), "fp16")
    assert converted.half == {"MatMul": 1}
    np.testing.assert_allclose(run(converted.model, x=np.ones((2, 4), np.float32)), 0.5, rtol=1e-3)


def test_weights_beyond_fp16_are_refused_and_bf16_takes_them() -> None:
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["embedding"])],
        {"w": np.full((2, 2), 1e6, np.float32)},
        ("N", 2),
        ("N", 2),
    )
    with pytest.raises(CheckpointError, match="the weight w reaches 1e"):
        to_half(model, "fp16")
    assert np.isfinite(run(to_half(model, "bf16", rounded=True).model, x=np.ones((1, 2), np.float32))).all()


SENSITIVE = {
    "LayerNormalization",
    "Softmax",
    "ReduceMean",
    "ReduceSum",
    "ReduceL2",
    "Sqrt",
    "Exp",
    "Erf",
    "Div",
} | {
    "Scan",
    "LSTM",
    "ScatterElements",
    "Elu",
}


@pytest.fixture(scope="module", params=sorted(SYSTEM_CASES))
def direct_bundle(
    request: pytest.FixtureRequest, small: Small, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A small untrained system without a bank, exported in all its precisions."""
    name: str = request.param
    folder = tmp_path_factory.mktemp(name)
    _, tile_px, options = SYSTEM_CASES[name]
    torch.save(small_network(name).state_dict(), folder / "model.pt")
    calibrated = ("fp16,bf16,int8", "--calibration", str(small.slide), "--calibration-tiles", "6")
    precisions = ("fp16,bf16",) if name == "histogene" else calibrated
    result = export(
        "-q",
        "--ckpt",
        str(folder / "model.pt"),
        "--system",
        name,
        "--genes",
        str(small.folder / "genes.txt"),
        "--tile-px",
        str(tile_px),
        "--parity-tiles",
        "8",
        "--min-pearson",
        "0",
        "--out",
        str(folder / "bundle"),
        *options,
        "--precision",
        *precisions,
    )
    assert result.exit_code == 0, result.output
    return name, folder


def test_sensitive_operators_of_every_system_stay_fp32(direct_bundle: tuple[str, Path]) -> None:
    for path in (direct_bundle[1] / "bundle").glob("*.onnx"):
        if len(path.suffixes) > 1:
            continue
        exact = onnx.load(path)
        inputs = feed(exact, rows=5)
        expected = run(exact, **inputs)
        for precision, half in (("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)):
            converted = onnx.load(path.with_suffix(f".{precision}.onnx"))
            kinds = types(converted)
            for node in converted.graph.node:
                touched = {kinds.get(n) for n in (*node.input, *captured_names(node), *node.output)}
                if node.op_type in SENSITIVE:
                    assert half not in touched, (precision, node.op_type, node.name)
                if node.op_type in ("Conv", "Gemm", "MatMul"):
                    assert TensorProto.FLOAT not in touched, (precision, node.op_type, node.name)
            if precision == "fp16":
                # A tenth of the output's spread: rounding is far below, a broken graph far above.
                assert 0 < np.abs(run(converted, **inputs) - expected).max() < 0.1 * expected.std()
        rounded = run(to_half(exact, "bf16", rounded=True).model, **inputs)
        assert 0 < np.abs(rounded - expected).max() < 0.5 * expected.std()


def test_systems_without_a_bank_export_every_precision(direct_bundle: tuple[str, Path], small: Small) -> None:
    name, folder = direct_bundle
    bundle = open_bundle(folder / "bundle")
    parity = json.loads((bundle.path / "parity.json").read_text())
    assert set(parity["precisions"]) == set(bundle.precisions) - {"fp32"}
    assert parity["precisions"]["fp16"]["expression"]["pearson_per_gene_mean"] > 0.99
    if name == "histogene":
        with pytest.raises(
            CheckpointError, match=r"no product behind its first .* leave --precision int8 out"
        ):
            derive_graphs(bundle.path, "int8", synthetic_tiles(Tile(size_px=20), 2), scratch=folder)
    else:
        assert parity["tiles"]["source"] == parity["precisions"]["int8"]["calibration"]["source"] == "B1.png"
    if bundle.manifest.kind == "slide":
        assert bundle.slide_graph("fp16").name == "slide.fp16.onnx"
        assert bundle.slide_graph("int8").name == "slide.onnx"
        assert parity["precisions"]["bf16"]["slide"]["half"]
    arguments = (
        "-q",
        "--ckpt",
        str(folder / "model.pt"),
        "--genes",
        str(small.folder / "genes.txt"),
        *SYSTEM_CASES[name][2],
    )
    result = export(*arguments, "--out", str(folder / "other"), "--min-overlap", "0.5")
    assert_refused(result, 4, ("no bank", "--min-overlap"))


def feed(model: onnx.ModelProto, rows: int) -> dict[str, np.ndarray]:
    """Random inputs of a graph."""
    rng = np.random.default_rng(4)
    inputs: dict[str, np.ndarray] = {}
    for i in model.graph.input:
        shape = [d.dim_value or rows for d in i.type.tensor_type.shape.dim]
        if i.name == "tiles":
            inputs[i.name] = rng.integers(0, 256, shape).astype(np.uint8)
        elif i.name in ("embedding", "linked"):
            inputs[i.name] = (
                np.ones(shape, np.float32)
                if i.name == "linked"
                else rng.normal(size=shape).astype(np.float32)
            )
        else:
            inputs[i.name] = rng.integers(0, rows, shape)
    return inputs


def test_int8_arithmetic() -> None:
    """The second convolution's input is rounded to range/127 and clipped, its weight per output channel."""
    rng = np.random.default_rng(1)
    first, second = (rng.normal(size=s).astype(np.float32) for s in ((4, 3, 3, 3), (5, 4, 3, 3)))
    second[2] *= 50
    bias = rng.normal(size=5).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v", "b"], ["embedding"], pads=[1, 1, 1, 1]),
    ]
    model = graph(nodes, {"w": first, "v": second, "b": bias}, ("N", 3, 8, 8), ("N", 5, 8, 8))
    assert [(p.activation, p.weight, p.axis) for p in find_products(model)] == [("r", "v", 0)]
    limit = 3.0
    converted = to_int8(model, {"r": limit})
    onnx.checker.check_model(converted, full_check=True)
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    conv = torch.nn.functional.conv2d
    r = torch.relu(conv(torch.from_numpy(x), torch.from_numpy(first), padding=1)).numpy()
    steps = np.clip(np.rint(r / np.float32(limit / 127)), -128, 127) * np.float32(limit / 127)
    scale = np.abs(second).max((1, 2, 3), keepdims=True) / 127
    weight = np.rint(second / scale) * scale
    expected = conv(
        torch.from_numpy(steps), torch.from_numpy(weight), torch.from_numpy(bias), padding=1
    ).numpy()
    output = run(converted, x=x)
    # A value between two steps may round either way.
    assert np.quantile(np.abs(output - expected), 0.99) < 1e-3 * np.abs(expected).std()
    initializers = {t.name: t for t in converted.graph.initializer}
    quantize = [n for n in converted.graph.node if n.op_type == "QuantizeLinear"]
    assert len(quantize) == 1 and not initializers[quantize[0].input[1]].dims
    assert {
        initializers[n.input[2]].data_type for n in converted.graph.node if n.op_type.endswith("tizeLinear")
    } == {TensorProto.INT8}
    assert not any(
        np.any(numpy_helper.to_array(initializers[n.input[2]]))
        for n in converted.graph.node
        if "Quant" in n.op_type
    )


def test_int8_leaves_the_head_and_the_pixels_alone(exported_bundle: Path) -> None:
    model = onnx.load(exported_bundle / "encoder.onnx")
    products = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    chosen = [model.graph.node[p.number] for p in find_products(model)]
    assert [n.op_type for n in products] == ["Conv"] * 20 + ["Gemm"] * 2
    assert [n.output[0] for n in chosen] == [n.output[0] for n in products[1:20]]


numbers = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=200)


@given(st.lists(numbers, min_size=1, max_size=5))
def test_a_range_covers_its_percentile_in_any_batches(batches: list[list[float]]) -> None:
    histogram = MagnitudeHistogram()
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    magnitudes = np.abs(np.concatenate([np.asarray(b, np.float32) for b in batches]).astype(np.float64))
    assert histogram.counts.sum() == len(magnitudes)
    limit, bin_width = histogram.range("percentile"), histogram.limit / BINS
    assert np.mean(magnitudes <= limit * (1 + 1e-6)) >= PERCENTILE / 100 - 1e-12
    assert limit <= np.quantile(magnitudes, PERCENTILE / 100, method="higher") + bin_width * (1 + 1e-6)
    assert 0 <= histogram.range("entropy") <= histogram.limit


def test_entropy_clips_a_tail_and_keeps_a_box() -> None:
    rng = np.random.default_rng(0)
    tail, box = MagnitudeHistogram(), MagnitudeHistogram()
    tail.add(np.append(rng.normal(size=400_000), 60.0).astype(np.float32))
    box.add(rng.uniform(-1, 1, 400_000).astype(np.float32))
    assert 2.5 < tail.range("entropy") < 8
    assert box.range("entropy") > 0.97
    assert tail.range("percentile") < 5


def test_ranges_are_those_of_the_graph(exported_bundle: Path) -> None:
    """The range of a convolution's input equals that of torch's activations on the same tiles."""
    model = onnx.load(exported_bundle / "encoder.onnx")
    tiles = np.random.default_rng(0).integers(0, 256, (5, TILE_PX, TILE_PX, 3)).astype(np.uint8)
    name = find_products(model)[0].activation
    body = tiny_network().image_encoder.model
    x = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        activations = torch.nn.Sequential(*list(body.children())[:4])(x).numpy()
    expected = np.quantile(np.abs(activations), PERCENTILE / 100)
    limit = calibrate(model, [name], tiles, "percentile")[name]
    assert limit == pytest.approx(expected, rel=0.02)


def test_tensorrt_rtx_parses_the_encoder_of_every_system(direct_bundle: tuple[str, Path]) -> None:
    pytest.importorskip("tensorrt_rtx_libs", reason="the rtx extra is not installed")
    from mclst.runtime.encoder.tensorrt.build import check_parses
    from mclst.runtime.encoder.tensorrt.library import load_library

    bundle = open_bundle(direct_bundle[1] / "bundle")
    for precision in bundle.precisions:
        check_parses(load_library("tensorrt-rtx"), bundle.encoder(precision))


def test_no_tiles_to_calibrate_is_one_sentence(exported_bundle: Path) -> None:
    model = onnx.load(exported_bundle / "encoder.onnx")
    name = find_products(model)[0].activation
    for t in model.graph.initializer:
        if t.name == next(n for n in model.graph.node if n.op_type == "Conv").input[1]:
            t.CopyFrom(numpy_helper.from_array(np.full(tuple(t.dims), np.nan, np.float32), t.name))
    with pytest.raises(ReferenceDataError, match="not finite"):
        calibrate(model, [name], np.zeros((1, TILE_PX, TILE_PX, 3), np.uint8), "percentile")
