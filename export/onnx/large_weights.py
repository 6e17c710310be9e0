"""Weights beyond protobuf's 2 GiB: kept in a file beside the graph, read one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper, numpy_helper

EXTERNAL_DATA_BYTES = 600_000_000
"""Above this size weights go to a separate file: in one piece a graph takes several times its size in memory.

Protobuf itself is limited to 2 GiB.
"""
SMALL_BYTES = 1024
"""Smaller tensors stay in the graph: shapes, axes and scalars, which shape inference reads."""


def model_proto(model: onnx_ir.Model, path: Path) -> onnx.ModelProto:
    """Convert a traced graph, its weights straight to `<path>.data` if they are large.

    Parameters
    ----------
    model : onnx_ir.Model
        Its large tensors are replaced by references to that file.
    path : Path
        Where the graph will be written.

    Returns
    -------
    onnx.ModelProto
        With its weights, or with references to them.
    """
    weights = model.graph.initializers.values()
    if sum(w.const_value.nbytes for w in weights if w.const_value is not None) > EXTERNAL_DATA_BYTES:
        onnx_ir.external_data.unload_from_model(
            model, path.parent, f"{path.name}.data", size_threshold_bytes=SMALL_BYTES
        )
    proto: onnx.ModelProto = onnx_ir.to_proto(model)
    return proto


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's values are in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def with_values(tensor: TensorProto, folder: Path | None) -> TensorProto:
    """The tensor with its values inside; `folder` is that of its graph."""
    if not is_external(tensor):
        return tensor
    copy = TensorProto()
    copy.CopyFrom(tensor)
    onnx.external_data_helper.load_external_data_for_tensor(copy, str(folder))
    copy.data_location = TensorProto.DEFAULT
    del copy.external_data[:]
    return copy


def read_values(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """A tensor's values; `folder` is that of its graph."""
    values: np.ndarray = numpy_helper.to_array(with_values(tensor, folder))
    return values


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph with its weights as further inputs, small enough for onnx's own tools.

    Inputs that were weights come last, in their order.
    """
    copy = onnx.ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        opset_import=model.opset_import,
        functions=model.functions,
    )
    graph = model.graph
    copy.graph.name = graph.name
    copy.graph.node.extend(graph.node)
    copy.graph.input.extend(graph.input)
    copy.graph.output.extend(graph.output)
    for tensor in graph.initializer:
        if _is_large(tensor):
            copy.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
        else:
            copy.graph.initializer.append(tensor)
    return copy


def _is_large(tensor: TensorProto) -> bool:
    return is_external(tensor) or tensor.ByteSize() > SMALL_BYTES
