"""Operations and bytes of graphs, against torch's own counter and against small graphs counted by hand."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper, save
from small_model import Small, tiny_network
from torch.utils.flop_counter import FlopCounterMode

from mclst.benchmarks.roofline.datasheets import DEVICES, predict
from mclst.benchmarks.roofline.onnx_flops import GraphWork, UncountedNode, count_work
from mclst.runtime.bundle.bundle import open_bundle

FLOAT = TensorProto.FLOAT


def operations_by_torch(module: torch.nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(shape))
    return int(counter.get_total_flops())


def traced(module: torch.nn.Module, side: int, path: Path) -> Path:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(2, 3, side, side),), str(path), dynamo=False, input_names=["tiles"],
            dynamic_axes={"tiles": {0: "N"}},
        )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("name", "side"), [("densenet121", 64), ("resnet50", 64), ("mobilenet_v3_small", 64)]
)
def test_published_networks_against_torchs_counter(name: str, side: int, tmp_path: Path) -> None:
    network = torchvision.models.get_model(name, weights=None).eval()
    path = traced(network, side, tmp_path / "graph.onnx")
    for batch in (1, 5):
        work = count_work(path, batch)
        assert work.products == operations_by_torch(network, (batch, 3, side, side))
    assert 0.7 * work.products < work.by_operator["Conv"] < work.products


def test_densenet_at_full_size_is_what_torchvision_publishes(tmp_path: Path) -> None:
    """2.834 GMAC per tile of 224 px, in the metadata of its weights."""
    meta = torchvision.models.DenseNet121_Weights.DEFAULT.meta
    network = torchvision.models.densenet121().eval()
    work = count_work(traced(network, 32, tmp_path / "graph.onnx"), 1).products
    classifier = 2 * 1024 * 1000
    # Every convolution sees 49 times the places at 224 px; the classifier does not.
    assert (49 * (work - classifier) + classifier) / 2e9 == pytest.approx(meta["_ops"], abs=0.001)


def test_a_bundles_encoder_against_torchs_counter(small: Small, exported_bundle: Path) -> None:
    bundle = open_bundle(exported_bundle)
    side = bundle.manifest.tile.size_px
    network = tiny_network()

    class Encoder(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            return network.encode_tiles(tiles)

    work = count_work(bundle.encoder_path, 7)
    assert work.products == operations_by_torch(Encoder(), (7, 3, side, side))
    assert work.tile_bytes == 7 * (3 * side * side + 4 * 16)
    parameters = sum(
        p.numel() for part in (network.image_encoder, network.image_projection) for p in part.parameters()
    )
    # Folding adds and drops some scales and shifts.
    assert work.weight_bytes == pytest.approx(4 * parameters, rel=0.01)
    assert work.between_bytes > work.least_bytes


def graph(
    tmp_path: Path, nodes: list[Any], inputs: dict[str, list[Any]], constants: dict[str, np.ndarray]
) -> Path:
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path / "small.onnx"
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_small_graphs_by_hand(tmp_path: Path) -> None:
    w = np.zeros((6, 2, 3, 3), np.float32)
    path = graph(
        tmp_path,
        [
            helper.make_node("Conv", ["x", "w"], ["c"], group=2, strides=[2, 2]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["g", "f"], ["y"], transA=1, transB=1),
        ],
        {"x": ["N", 4, 9, 9]},
        {"w": w, "g": np.zeros((6, 5), np.float32)},
    )
    work = count_work(path, 3)
    conv = 2 * (3 * 6 * 4 * 4) * (2 * 3 * 3)
    gemm = 2 * 5 * 3 * 6
    assert work.by_operator == {"Conv": conv, "Gemm": gemm, "Relu": 288, "GlobalAveragePool": 288}
    assert (work.products, work.other) == (conv + gemm, 576)
    assert work.weight_bytes == 4 * (w.size + 30) and work.tile_bytes == 4 * (3 * 4 * 81 + 5 * 3)
    moved = (3 * 4 * 81 + w.size + 288) + 2 * 288 + (288 + 18) + (18 + 18) + (30 + 18 + 15)
    assert work.between_bytes == 4 * moved


def test_products_of_other_kinds_by_hand(tmp_path: Path) -> None:
    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4)
    path = graph(
        tmp_path, [lstm], {"x": ["T", 2, 3]},
        {"w": np.zeros((1, 16, 3), np.float32), "r": np.zeros((1, 16, 4), np.float32)},
    )  # fmt: skip
    assert count_work(path, 5).products == 2 * 5 * 2 * 16 * (3 + 4)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = graph(tmp_path, [product], {"x": ["N", 8, 5, 6]}, {"w": np.zeros((6, 7), np.float32)})
    assert count_work(path, 2).products == 2 * 2 * 8 * 5 * 7 * 6


@pytest.mark.parametrize("kind", ["Einsum", "NonMaxSuppression"])
def test_unknown_work_is_refused_and_never_counted_as_nothing(tmp_path: Path, kind: str) -> None:
    attributes = {"equation": "ij->ji"} if kind == "Einsum" else {}
    names = ["x"] if kind == "Einsum" else ["x", "x"]
    path = graph(
        tmp_path, [helper.make_node(kind, names, ["y"], name="odd", **attributes)], {"x": ["N", 4]}, {}
    )
    with pytest.raises(Exception, match=r"odd|NonMaxSuppression") as error:
        count_work(path, 1)
    assert kind != "Einsum" or isinstance(error.value, UncountedNode)


# --- bounds of devices one does not have
# --------------------------------------------------------------------------

WORK = GraphWork(
    products=10**12, other=0, weight_bytes=3 * 10**7, tile_bytes=10**6, between_bytes=0, by_operator={}
)


def test_a_prediction_is_the_slowest_of_three_limits() -> None:
    bound = predict("l4", "fp16", WORK, tile_bytes=150_528, batch=64)
    assert bound["kind"] == "bound" and bound["limited_by"] == "arithmetic"
    assert bound["at_least_s"] == pytest.approx(1e12 / 121e12)
    assert bound["at_most_tiles_per_s"] == pytest.approx(64 / bound["at_least_s"])
    assert bound["seconds"]["memory"] == pytest.approx(31e6 / 300e9)
    assert bound["seconds"]["link"] == pytest.approx(64 * 150_528 / 31.5e9)
    little = GraphWork(1000, 0, 3 * 10**7, 10**6, 0, {})
    assert predict("l4", "fp16", little, 150_528, 64)["limited_by"] == "link"
    assert predict("orin", "fp16", little, 150_528, 64)["limited_by"] == "memory"


@pytest.mark.parametrize("name", DEVICES)
def test_data_sheets_are_dense_and_in_order(name: str) -> None:
    rates = DEVICES[name].operations
    assert rates["fp32"] < rates["bf16"] <= rates["fp16"] < rates["int8"]
    assert rates["int8"] == pytest.approx(2 * rates["fp16"], rel=0.01)
    assert DEVICES[name].source
