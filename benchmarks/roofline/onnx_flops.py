"""Operations and bytes of an ONNX graph, counted from the graph itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, shape_inference

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

_POINTWISE = {
    "Add": 1, "Sub": 1, "Mul": 1, "Div": 1, "Neg": 1, "Abs": 1, "Max": 1, "Min": 1, "Clip": 1, "Relu": 1,
    "Where": 1, "Sqrt": 1, "Pow": 1, "Exp": 1, "Log": 1, "Erf": 1, "Tanh": 1, "Sigmoid": 1, "Reciprocal": 1,
    "LeakyRelu": 2, "Elu": 2, "HardSigmoid": 2, "HardSwish": 3, "Gelu": 4, "Swish": 2,
    "Softplus": 2, "Sin": 1, "Cos": 1,
    "BatchNormalization": 2, "LayerNormalization": 8, "InstanceNormalization": 8, "GroupNormalization": 8,
    "RMSNormalization": 6, "Softmax": 5, "LogSoftmax": 5, "QuantizeLinear": 2, "DequantizeLinear": 2,
    "Round": 1, "Floor": 1, "Ceil": 1,
}  # fmt: skip
"""Operations per output value: a convention, for a small share of a network's work."""

_REDUCING = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd",
    "ReduceSumSquare", "GlobalAveragePool", "GlobalMaxPool", "ArgMax", "ArgMin", "CumSum", "TopK",
)  # fmt: skip
"""One operation per input value."""

_MOVING = (
    "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather",
    "Expand", "Pad", "Identity", "Constant", "ConstantOfShape", "Shape", "Size", "Range", "Tile", "Dropout",
    "GatherElements", "GatherND", "ScatterND", "ScatterElements", "DepthToSpace", "SpaceToDepth", "Equal",
    "Less", "Greater", "Not", "And", "Or", "GreaterOrEqual", "LessOrEqual", "IsNaN", "Trilu", "EyeLike",
    "OneHot", "CastLike",
)  # fmt: skip
"""No arithmetic."""


class UncountedNode(ValueError):
    """A node whose work is unknown; the message names it."""


@dataclass(frozen=True)
class GraphWork:
    """Work of one run of a graph.

    products: operations of convolutions and matrix products, two per multiply-add. other: all other
    operations. weight_bytes: all constants, once. tile_bytes: the graph's inputs and outputs. between_bytes:
    traffic if every node read its inputs from memory and wrote its outputs there. by_operator: operations by
    kind of node.
    """

    products: int
    other: int
    weight_bytes: int
    tile_bytes: int
    between_bytes: int
    by_operator: dict[str, int]

    @property
    def least_bytes(self) -> int:
        """Least memory traffic: constants, inputs and outputs once."""
        return self.weight_bytes + self.tile_bytes


def count_work(path: Path, batch: int) -> GraphWork:
    """Count the work of the graph at `path` on `batch` tiles.

    Raises
    ------
    UncountedNode
        For a node of unknown work or shape, and for control flow.
    """
    model = _with_batch(onnx.load(path), batch)
    shapes, sizes = _shapes(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    products: Counter[str] = Counter()
    other: Counter[str] = Counter()
    between = 0
    for node in model.graph.node:
        work = _node_work(node, shapes)
        (products if node.op_type in _PRODUCTS else other)[node.op_type] += work
        between += sum(sizes.get(name, 0) for name in (*node.input, *node.output))
    boundary = {value.name for value in (*model.graph.input, *model.graph.output)} - set(constants)
    return GraphWork(
        products=products.total(),
        other=other.total(),
        weight_bytes=sum(sizes[name] for name in constants),
        tile_bytes=sum(sizes[name] for name in boundary),
        between_bytes=between,
        by_operator={kind: n for kind, n in (products + other).most_common() if n},
    )


def _with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Fix the free first axis of the inputs to `batch`."""
    for value in model.graph.input:
        axis = value.type.tensor_type.shape.dim[0]
        if axis.dim_param:
            axis.dim_value = batch
    # Shapes stored by the exporter refer to the free axis.
    del model.graph.value_info[:]
    for value in model.graph.output:
        for axis in value.type.tensor_type.shape.dim:
            axis.Clear()
    return model


def _shapes(model: onnx.ModelProto) -> tuple[Shapes, dict[str, int]]:
    """Shape and size in bytes of every tensor whose shape can be inferred."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes: Shapes = {}
    sizes: dict[str, int] = {}
    for tensor in inferred.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
        sizes[tensor.name] = _bytes(tensor.data_type, shapes[tensor.name])
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
            sizes[value.name] = _bytes(kind.elem_type, shapes[value.name])
    return shapes, sizes


def _bytes(kind: int, shape: Shape) -> int:
    return int(prod(shape) * np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize)


def _node_work(node: NodeProto, shapes: Shapes) -> int:
    kind = node.op_type
    if kind in _MOVING:
        return 0
    try:
        if kind in _PRODUCTS:
            return _PRODUCTS[kind](node, shapes)
        if kind in _POINTWISE:
            return _POINTWISE[kind] * prod(shapes[node.output[0]])
        if kind in _REDUCING:
            return prod(shapes[node.input[0]])
        if kind in ("MaxPool", "AveragePool"):
            return prod(shapes[node.output[0]]) * prod(_attribute(node, "kernel_shape"))
    except KeyError as missing:
        raise UncountedNode(f"the shape of {missing} at {kind} {node.name!r} is not known") from missing
    raise UncountedNode(f"the work of {kind} {node.name!r} is not known")


def _attribute(node: NodeProto, name: str) -> Shape:
    return next(tuple(attribute.ints) for attribute in node.attribute if attribute.name == name)


def _convolution(node: NodeProto, shapes: Shapes) -> int:
    # A weight is [channels out, channels in of its group, *kernel].
    return 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[_weight_at(node)]][1:])


def _weight_at(node: NodeProto) -> int:
    return 3 if node.op_type == "QLinearConv" else 1


def _gemm(node: NodeProto, shapes: Shapes) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _matrix_product(node: NodeProto, shapes: Shapes) -> int:
    return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _lstm(node: NodeProto, shapes: Shapes) -> int:
    steps, batch, width = shapes[node.input[0]]
    directions, four_hidden, _ = shapes[node.input[1]]
    return 2 * steps * batch * directions * four_hidden * (width + four_hidden // 4)


_PRODUCTS: dict[str, Callable[[NodeProto, Shapes], int]] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": _convolution,
    "Gemm": _gemm,
    "MatMul": _matrix_product,
    "MatMulInteger": _matrix_product,
    "QLinearMatMul": _matrix_product,
    "LSTM": _lstm,
}
