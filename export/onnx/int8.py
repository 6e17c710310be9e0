"""The fp32 graph with its products in int8: explicit Q/DQ pairs in the one form that TensorRT and ONNX Runtime both take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

PRODUCTS = ("Conv", "Gemm", "MatMul")
LARGEST = 127
"""Symmetric: -128 is not used, so that a weight and its negative are equally far."""


TINY = 1e-30
"""Range in place of 0, whose scale would be none."""


@dataclass(frozen=True)
class Product:
    """A node to quantise: its activation's name, its weight's, and the weight's axis of output channels."""

    number: int
    activation: str
    weight: str
    axis: int


def find_products(model: onnx.ModelProto) -> list[Product]:
    """Convolutions and products with constant weights over maps or sequences, in order, but for the first.

    The first sees the pixels; products of one row per tile (a head behind the pooling) are a thousandth of the work,
    and what they lose goes straight into the embedding.
    """
    held = {t.name: len(t.dims) for t in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    rank = {v.name: len(v.type.tensor_type.shape.dim) for v in (*inferred.value_info, *inferred.input)}
    found: list[Product] = []
    first = True
    for number, node in enumerate(model.graph.node):
        if node.op_type not in PRODUCTS or node.input[1] not in held or node.input[0] in held:
            continue
        if first or rank.get(node.input[0], 0) < 3:
            first = False
            continue
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or turned else held[node.input[1]] - 1
        found.append(Product(number, node.input[0], node.input[1], axis))
    return found


def to_int8(model: onnx.ModelProto, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """A copy whose products of `ranges`' activations take int8.

    Activations per tensor, x ≈ s·round(x/s) cut at ±127 with s = range/127; weights per output channel, s = max|w|/127;
    zero points 0; biases, and all between the products, fp32. `ranges`: activation → range, in the graph's units;
    one that was 0 on every calibration tile stays 0 in int8.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    before: dict[int, list[NodeProto]] = {}
    made: dict[str, str] = {}
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "int8_zero"))
    for product in find_products(model):
        reach = ranges[product.activation]
        node, nodes = graph.node[product.number], before.setdefault(product.number, [])
        if product.activation not in made:
            made[product.activation] = f"{product.activation}_int8"
            nodes += _activation(graph, product.activation, made[product.activation], reach)
        key = f"{product.weight}_axis{product.axis}"
        if key not in made:
            made[key] = f"{key}_int8"
            nodes.append(_weight(graph, weights[product.weight], made[key], product.axis))
        node.input[0], node.input[1] = made[product.activation], made[key]
    nodes = [part for number, node in enumerate(graph.node) for part in (*before.get(number, ()), node)]
    used = {name for node in nodes for name in node.input}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return copy


def _activation(graph: onnx.GraphProto, name: str, to: str, reach: float) -> list[NodeProto]:
    scale, steps = f"{to}_scale", f"{to}_steps"
    graph.initializer.append(numpy_helper.from_array(np.array(max(reach, TINY) / LARGEST, np.float32), scale))
    return [
        helper.make_node("QuantizeLinear", [name, scale, "int8_zero"], [steps]),
        helper.make_node("DequantizeLinear", [steps, scale, "int8_zero"], [to]),
    ]


def _weight(graph: onnx.GraphProto, weight: NDArray[np.float32], to: str, axis: int) -> NodeProto:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    reach = np.abs(weight).max(axis=others)
    scale = np.where(reach > 0, reach / LARGEST, 1).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    steps = np.rint(weight / scale.reshape(shape)).clip(-LARGEST, LARGEST).astype(np.int8)
    names = [f"{to}_steps", f"{to}_scale", f"{to}_zero"]
    for values, held in zip((steps, scale, np.zeros(len(scale), np.int8)), names, strict=True):
        graph.initializer.append(numpy_helper.from_array(values, held))
    return helper.make_node("DequantizeLinear", names, [to], axis=axis)
