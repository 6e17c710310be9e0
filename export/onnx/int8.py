"""Quantize a graph's products to int8 by explicit Q/DQ pairs that TensorRT and ONNX Runtime both accept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

PRODUCTS = ("Conv", "Gemm", "MatMul")
LARGEST = 127
"""Symmetric: -128 is not used."""

MIN_RANGE = 1e-30
"""Replaces a range of 0, which has no scale."""


@dataclass(frozen=True)
class Product:
    """A node to quantize; axis: the output channels of its weight."""

    number: int
    activation: str
    weight: str
    axis: int


def find_products(model: onnx.ModelProto) -> list[Product]:
    """Convolutions and products with constant weights over maps or sequences, in order, without the first."""
    # Skipped: the first, which sees the pixels, and products of one row per tile. Such a head behind the
    # pooling is a thousandth of the work, and its error goes straight into the embedding.
    ranks = {t.name: len(t.dims) for t in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    input_ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*inferred.value_info, *inferred.input)}
    products: list[Product] = []
    first = True
    for number, node in enumerate(model.graph.node):
        if node.op_type not in PRODUCTS or node.input[1] not in ranks or node.input[0] in ranks:
            continue
        if first or input_ranks.get(node.input[0], 0) < 3:
            first = False
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else ranks[node.input[1]] - 1
        products.append(Product(number, node.input[0], node.input[1], axis))
    return products


def to_int8(model: onnx.ModelProto, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """Copy a graph with its products in int8.

    Parameters
    ----------
    model : onnx.ModelProto
        In fp32.
    ranges : mapping of str to float
        Activation → range in the graph's units; 0 if it was 0 on every calibration tile.

    Notes
    -----
    x ≈ s·round(x/s), clipped to ±127 s. Activations: s = range/127 per tensor. Weights: s = max|w|/127 per
    output channel. Zero points are 0; biases and everything between products stay fp32.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    before: dict[int, list[NodeProto]] = {}
    quantized: dict[str, str] = {}
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "int8_zero"))
    for product in find_products(model):
        node, nodes = graph.node[product.number], before.setdefault(product.number, [])
        if product.activation not in quantized:
            quantized[product.activation] = f"{product.activation}_int8"
            nodes += _activation(
                graph, product.activation, quantized[product.activation], ranges[product.activation]
            )
        key = f"{product.weight}_axis{product.axis}"
        if key not in quantized:
            quantized[key] = f"{key}_int8"
            nodes.append(_weight(graph, weights[product.weight], quantized[key], product.axis))
        node.input[0], node.input[1] = quantized[product.activation], quantized[key]
    nodes = [step for number, node in enumerate(graph.node) for step in (*before.get(number, ()), node)]
    used = {name for node in nodes for name in node.input}
    initializers = [t for t in graph.initializer if t.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    return copy


def _activation(graph: onnx.GraphProto, name: str, to: str, limit: float) -> list[NodeProto]:
    scale, steps = f"{to}_scale", f"{to}_steps"
    graph.initializer.append(
        numpy_helper.from_array(np.array(max(limit, MIN_RANGE) / LARGEST, np.float32), scale)
    )
    return [
        helper.make_node("QuantizeLinear", [name, scale, "int8_zero"], [steps]),
        helper.make_node("DequantizeLinear", [steps, scale, "int8_zero"], [to]),
    ]


def _weight(graph: onnx.GraphProto, weight: NDArray[np.float32], to: str, axis: int) -> NodeProto:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others)
    scale = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    steps = np.rint(weight / scale.reshape(shape)).clip(-LARGEST, LARGEST).astype(np.int8)
    names = [f"{to}_steps", f"{to}_scale", f"{to}_zero"]
    for values, name in zip((steps, scale, np.zeros(len(scale), np.int8)), names, strict=True):
        graph.initializer.append(numpy_helper.from_array(values, name))
    return helper.make_node("DequantizeLinear", names, [to], axis=axis)
