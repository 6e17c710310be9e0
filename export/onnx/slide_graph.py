"""The part that sees all spots of a slide, as an ONNX graph whose attention is a loop over blocks of queries."""

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
from mclst.models.transformer import QUERIES
from mclst.runtime.bundle.manifest import Graph

DOMAIN = "mclst"
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
"""Stands for `attend` between tracing and `_loop_over_queries`; no graph on disk has it."""


class SequencePart(nn.Module):
    """`predict_expression` of a network as a module of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        embedding: Tensor,
        position: Tensor,
        neighbours: Tensor | None = None,
        linked: Tensor | None = None,
    ) -> Tensor:
        """Features float32 [N, F], position int64 [N, 2] and, with a graph, neighbours and linked [N, K] → [N, G]."""
        graph = () if neighbours is None else (neighbours, linked)
        out: Tensor = self.network.predict_expression(embedding, position, *graph)  # type: ignore[operator]
        return out


def write_sequence(network: nn.Module, traits: Traits, graph: Graph | None, path: Path) -> None:
    """Trace `predict_expression` of `network` into `path`, in standard operators, N dynamic.

    Inputs: `embedding` float32 [N, F], `position` int64 [N, 2] and, with a graph of K neighbours, `neighbours` int64
    [N, K] (a row of the slide each) and `linked` float32 [N, K] (1, or 0 where there is no such neighbour).
    Output: `expression` float32 [N, G]. Raises CheckpointError where it cannot be traced.
    """
    spots = 5
    inputs = {
        "embedding": torch.zeros(spots, traits.width),
        "position": torch.zeros(spots, 2, dtype=torch.int64),
    }
    if graph is not None:
        inputs["neighbours"] = torch.zeros(spots, graph.neighbours, dtype=torch.int64)
        inputs["linked"] = torch.ones(spots, graph.neighbours)
    translations: dict[Any, Any] = {torch.ops.mclst.attend.default: lambda q, k, v: ATTEND(q, k, v)}
    model = trace(
        SequencePart(network).eval(),
        inputs,
        "expression",
        "the sequence part cannot be traced",
        "report this network",
        translations,
    )
    _loop_over_queries(model)
    save(model, path)


def _loop_over_queries(model: onnx.ModelProto) -> None:
    """Replace each Attend by a Scan over blocks of QUERIES queries."""
    nodes: list[onnx.NodeProto] = []
    for number, node in enumerate(model.graph.node):
        nodes += _scan(node, f"attend_{number}") if node.domain == DOMAIN else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    names = {opset.domain: opset for opset in model.opset_import}
    if DOMAIN in names:
        model.opset_import.remove(names[DOMAIN])
    constants = {
        "attend_block": QUERIES,
        "attend_one": 1,
        "attend_heads_blocks": [0, -1, QUERIES],
        "attend_heads_rows": [0, -1],
        "attend_pads_before": [0, 0, 0, 0],
        "attend_pad_of_width": 0,
        "attend_start": 0,
    }
    for name, value in constants.items():
        array = np.atleast_1d(np.asarray(value, np.int64))
        model.graph.initializer.append(numpy_helper.from_array(array, name))


def _scan(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """softmax(q kᵀ) v for q, k, v [heads, N, d], as padding, Scan over [blocks, heads, QUERIES, d], and cutting back."""
    q, k, v = node.input

    def own(what: str) -> str:
        return f"{name}_{what}"

    body = helper.make_graph(
        [
            helper.make_node("MatMul", [own("some"), own("kt")], [own("scores")]),
            helper.make_node("Softmax", [own("scores")], [own("weights")], axis=-1),
            helper.make_node("MatMul", [own("weights"), v], [own("mixed")]),
        ],
        own("body"),
        [helper.make_tensor_value_info(own("some"), TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(own("mixed"), TensorProto.FLOAT, None)],
    )
    make = helper.make_node
    return [
        make("Transpose", [k], [own("kt")], perm=[0, 2, 1]),
        make("Shape", [q], [own("rows")], start=1, end=2),
        make("Shape", [q], [own("width")], start=2, end=3),
        # Rows short of a whole block: (QUERIES - N mod QUERIES) mod QUERIES.
        make("Mod", [own("rows"), "attend_block"], [own("over")]),
        make("Sub", ["attend_block", own("over")], [own("short")]),
        make("Mod", [own("short"), "attend_block"], [own("lack")]),
        make("Concat", ["attend_pads_before", own("lack"), "attend_pad_of_width"], [own("pads")], axis=0),
        make("Pad", [q, own("pads")], [own("padded")]),
        make("Concat", ["attend_heads_blocks", own("width")], [own("blocked_shape")], axis=0),
        make("Reshape", [own("padded"), own("blocked_shape")], [own("by_head")]),
        make("Transpose", [own("by_head")], [own("by_block")], perm=[1, 0, 2, 3]),
        make("Scan", [own("by_block")], [own("done")], num_scan_inputs=1, body=body),
        make("Transpose", [own("done")], [own("back")], perm=[1, 0, 2, 3]),
        make("Concat", ["attend_heads_rows", own("width")], [own("flat_shape")], axis=0),
        make("Reshape", [own("back"), own("flat_shape")], [own("flat")]),
        make("Slice", [own("flat"), "attend_start", own("rows"), "attend_one"], [node.output[0]]),
    ]
