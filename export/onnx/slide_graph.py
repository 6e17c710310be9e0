"""The slide-level network as an ONNX graph, its attention a loop over blocks of queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import values
from torch import Tensor, nn

from mclst.export.onnx.graph import save, trace
from mclst.models.system import Traits
from mclst.models.transformer import QUERY_BLOCK
from mclst.runtime.bundle.manifest import Graph

DOMAIN = "mclst"
# Placeholder for `attend` between tracing and `_loop_over_queries`; no saved graph has it.
ATTEND = values.Op(
    values.Opset(DOMAIN, 1),
    "Attend",
    onnx.defs.OpSchema(
        "Attend",
        DOMAIN,
        1,
        inputs=[onnx.defs.OpSchema.FormalParameter(name, "T") for name in "qkv"],
        outputs=[onnx.defs.OpSchema.FormalParameter("mixed", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
    ),
)


class SlideModule(nn.Module):
    """`predict_expression` of a network as a module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        embedding: Tensor,
        position: Tensor,
        neighbors: Tensor | None = None,
        linked: Tensor | None = None,
    ) -> Tensor:
        """Features [N, F], position int64 [N, 2], with a graph neighbors and linked [N, K] → [N, G]."""
        graph = () if neighbors is None else (neighbors, linked)
        out: Tensor = self.network.predict_expression(embedding, position, *graph)  # type: ignore[operator]
        return out


def write_slide_graph(network: nn.Module, traits: Traits, graph: Graph | None, path: Path) -> None:
    """Trace `predict_expression` of `network` in standard operators.

    Parameters
    ----------
    network : nn.Module
        Of a slide system.
    traits : Traits
    graph : Graph or None
        Neighbor graph of the manifest.
    path : Path
        ONNX file to write.

    Raises
    ------
    CheckpointError
        If the network cannot be traced.

    Notes
    -----
    Inputs, N dynamic: `embedding` float32 [N, F], `position` int64 [N, 2] and, with a graph of K neighbors,
    `neighbours` int64 [N, K] (rows of the slide) and `linked` float32 [N, K] (0 for a missing neighbor, else
    1). Output: `expression` float32 [N, G].
    """
    spots = 5
    inputs = {
        "embedding": torch.zeros(spots, traits.width),
        "position": torch.zeros(spots, 2, dtype=torch.int64),
    }
    if graph is not None:
        inputs["neighbours"] = torch.zeros(spots, graph.neighbors, dtype=torch.int64)
        inputs["linked"] = torch.ones(spots, graph.neighbors)
    translations: dict[Any, Any] = {torch.ops.mclst.attend.default: lambda q, k, v: ATTEND(q, k, v)}
    model = trace(
        SlideModule(network).eval(),
        inputs,
        "expression",
        "the slide network cannot be traced",
        "report this network",
        path,
        translations,
    )
    _loop_over_queries(model)
    save(model, path)


def _loop_over_queries(model: onnx.ModelProto) -> None:
    """Replace each Attend by a Scan over blocks of QUERY_BLOCK queries."""
    nodes: list[onnx.NodeProto] = []
    for number, node in enumerate(model.graph.node):
        nodes += _scan(node, f"attend_{number}") if node.domain == DOMAIN else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    opsets = {opset.domain: opset for opset in model.opset_import}
    if DOMAIN in opsets:
        model.opset_import.remove(opsets[DOMAIN])
    constants = {
        "attend_block": QUERY_BLOCK,
        "attend_one": 1,
        "attend_heads_blocks": [0, -1, QUERY_BLOCK],
        "attend_heads_rows": [0, -1],
        "attend_pads_before": [0, 0, 0, 0],
        "attend_pad_of_width": 0,
        "attend_start": 0,
    }
    for name, value in constants.items():
        array = np.atleast_1d(np.asarray(value, np.int64))
        model.graph.initializer.append(numpy_helper.from_array(array, name))


def _scan(node: onnx.NodeProto, prefix: str) -> list[onnx.NodeProto]:
    """softmax(q kᵀ) v for q, k, v [heads, N, d]: pad, Scan over [blocks, heads, QUERY_BLOCK, d], cut back."""
    q, k, v = node.input

    def name(suffix: str) -> str:
        return f"{prefix}_{suffix}"

    make = helper.make_node
    body = helper.make_graph(
        [
            make("MatMul", [name("some"), name("kt")], [name("scores")]),
            make("Softmax", [name("scores")], [name("weights")], axis=-1),
            make("MatMul", [name("weights"), v], [name("mixed")]),
        ],
        name("body"),
        [helper.make_tensor_value_info(name("some"), TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(name("mixed"), TensorProto.FLOAT, None)],
    )
    return [
        make("Transpose", [k], [name("kt")], perm=[0, 2, 1]),
        make("Shape", [q], [name("rows")], start=1, end=2),
        make("Shape", [q], [name("width")], start=2, end=3),
        # Rows missing from the last block: (QUERY_BLOCK - N mod QUERY_BLOCK) mod QUERY_BLOCK.
        make("Mod", [name("rows"), "attend_block"], [name("over")]),
        make("Sub", ["attend_block", name("over")], [name("short")]),
        make("Mod", [name("short"), "attend_block"], [name("lack")]),
        make("Concat", ["attend_pads_before", name("lack"), "attend_pad_of_width"], [name("pads")], axis=0),
        make("Pad", [q, name("pads")], [name("padded")]),
        make("Concat", ["attend_heads_blocks", name("width")], [name("blocked_shape")], axis=0),
        make("Reshape", [name("padded"), name("blocked_shape")], [name("by_head")]),
        make("Transpose", [name("by_head")], [name("by_block")], perm=[1, 0, 2, 3]),
        make("Scan", [name("by_block")], [name("done")], num_scan_inputs=1, body=body),
        make("Transpose", [name("done")], [name("back")], perm=[1, 0, 2, 3]),
        make("Concat", ["attend_heads_rows", name("width")], [name("flat_shape")], axis=0),
        make("Reshape", [name("back"), name("flat_shape")], [name("flat")]),
        make("Slice", [name("flat"), "attend_start", name("rows"), "attend_one"], [node.output[0]]),
    ]
