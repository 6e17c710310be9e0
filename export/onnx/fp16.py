"""The fp32 graph in half precision: its products in fp16 or bf16, sensitive operators in fp32, a Cast at each border."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, version_converter

from mclst.runtime.errors import CheckpointError

Half = Literal["fp16", "bf16"]
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""What half precision is for; tensor cores add these up in float32."""
MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
    | {"Unsqueeze", "MaxPool", "AveragePool", "Relu", "BatchNormalization"}
)
"""Safe in half precision behind a product: they move values, or keep them in range."""
ARITHMETIC = frozenset({"Add", "Mul", "Neg", "Sub"})
"""Half between halves; fp32 beside an operator that is kept, so that a square, a sum and its root stay together."""

BF16_OPSET = 22
"""The first in which a convolution may be bfloat16."""


@dataclass
class HalfGraph:
    """A converted graph, and how many operators of each kind are half and how many stayed fp32."""

    model: onnx.ModelProto
    half: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)


def to_half(model: onnx.ModelProto, precision: Half, *, rounded: bool = False) -> HalfGraph:
    """A copy of an fp32 graph with its products in `precision`; inputs and outputs keep their types.

    Kept in fp32 is all that is not named here as safe: LayerNormalization, Softmax, reductions, roots, exponentials,
    divisions (so a capsule's squash and a graph attention's mask), GELU, LSTM, loops, what comes before the first
    product (so the preprocessing), and sums and products of single values beside any of these. A
    BatchNormalization's statistics are folded into its scale and shift in float64 first, so only these two are rounded.

    rounded: the same numbers as a graph of fp32 operators, each half result rounded by a pair of Casts, for a provider
    that has no such operators.
    Raises CheckpointError where a weight is beyond the range of `precision`.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if precision == "bf16" and not rounded:
        copy = version_converter.convert_version(copy, BF16_OPSET)
        copy.ir_version = max(copy.ir_version, 10)
        del copy.graph.value_info[:]
    _name_constants(copy.graph)
    return _Converter(copy, precision, rounded).run()


def _name_constants(graph: onnx.GraphProto) -> None:
    """Constant nodes → initializers, so that every constant is found in one place."""
    nodes = []
    for node in graph.node:
        values = {a.name: a for a in node.attribute}
        if node.op_type == "Constant" and "value" in values:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(values["value"].t)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def captured(node: NodeProto) -> set[str]:
    """Names of the outer graph that a node's subgraphs use."""
    found: set[str] = set()
    for body in _bodies(node):
        own = {i.name for i in body.input} | {t.name for t in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        for inner in body.node:
            found |= ({name for name in inner.input if name} | captured(inner)) - own
    return found


def _bodies(node: NodeProto) -> Iterator[onnx.GraphProto]:
    return (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)


class _Converter:
    """One conversion: which nodes are half, and the tensors at the borders."""

    def __init__(self, model: onnx.ModelProto, precision: Half, rounded: bool) -> None:
        self.model, self.graph = model, model.graph
        self.precision, self.rounded = precision, rounded
        self.type, self.dtype = TYPES[precision], DTYPES[precision]
        self.floats = _float_tensors(model)
        self.held = {t.name: t for t in self.graph.initializer}
        self.halves: set[str] = set()
        """Tensors that a half node makes."""
        self.made: dict[str, str] = {}
        """Tensor → its counterpart in the other type, once asked for."""
        self.nodes: list[NodeProto] = []

    def run(self) -> HalfGraph:
        """Convert in place."""
        half = self._choose()
        done = HalfGraph(self.model)
        for number, node in enumerate(list(self.graph.node)):
            if number in half:
                self._convert(node)
                done.half[node.op_type] += 1
            else:
                self._keep(node)
                if any(name in self.floats for name in node.output):
                    done.kept[node.op_type] += 1
        outputs = set() if self.rounded else {o.name for o in self.graph.output} & self.halves
        self.nodes += [self._as_output(name) for name in sorted(outputs)]
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        self._drop_unused()
        return done

    def _choose(self) -> set[int]:
        """Numbers of the nodes to convert."""
        behind: set[str] = set()
        chosen: set[int] = set()
        nodes = list(self.graph.node)
        for number, node in enumerate(nodes):
            product = node.op_type in PRODUCTS
            if product or behind & {*node.input, *captured(node)}:
                behind |= set(node.output)
                if node.op_type in PRODUCTS | MOVES | ARITHMETIC and node.output[0] in self.floats:
                    chosen.add(number)
        makers = {name: number for number, node in enumerate(nodes) for name in node.output}
        beside: set[int] = set()
        for number, node in enumerate(nodes):
            for name in {*node.input, *captured(node)}:
                pair = {number, makers.get(name, number)}
                if name in self.floats and len(pair) == 2 and len(pair & chosen) == 1:
                    beside |= pair & chosen
        return chosen - {n for n in beside if nodes[n].op_type in ARITHMETIC}

    def _convert(self, node: NodeProto) -> None:
        if node.op_type == "BatchNormalization":
            self._fold_statistics(node)
        for place, name in enumerate(node.input):
            if name in self.held and name in self.floats:
                node.input[place] = self._half_weight(name)
            elif name in self.floats and name not in self.halves:
                node.input[place] = self._cast(name, self.type)
        self.nodes.append(node)
        for place, name in enumerate(node.output):
            if name not in self.floats:
                continue
            if self.rounded:
                node.output[place] = f"{name}_exact"
                self.nodes += self._round(node.output[place], name)
            self.halves.add(name)

    def _keep(self, node: NodeProto) -> None:
        for place, name in enumerate(node.input):
            if name in self.halves:
                node.input[place] = self._cast(name, TensorProto.FLOAT)
        names = {name: self._cast(name, TensorProto.FLOAT) for name in captured(node) & self.halves}
        if names:
            _rename(node, names)
        self.nodes.append(node)

    def _cast(self, name: str, to: int) -> str:
        """The tensor in the other type; made at its first use, which is behind its maker."""
        if self.rounded and to == TensorProto.FLOAT:
            return name
        if name not in self.made:
            self.made[name] = f"{name}_{'float' if to == TensorProto.FLOAT else self.precision}"
            if self.rounded:
                self.nodes += self._round(name, self.made[name])
            else:
                self.nodes.append(helper.make_node("Cast", [name], [self.made[name]], to=to))
        return self.made[name]

    def _round(self, name: str, to: str) -> list[NodeProto]:
        short = f"{to}_short"
        return [
            helper.make_node("Cast", [name], [short], to=self.type),
            helper.make_node("Cast", [short], [to], to=TensorProto.FLOAT),
        ]

    def _half_weight(self, name: str) -> str:
        if name not in self.made:
            exact = numpy_helper.to_array(self.held[name])
            with np.errstate(over="ignore"):
                half = exact.astype(self.dtype)
            if not np.isfinite(half.astype(np.float32)).all():
                raise CheckpointError(
                    f"the weight {name} reaches {np.abs(exact).max():.3g}, beyond the range of {self.precision}; "
                    f"export without --precision {self.precision}"
                )
            self.made[name] = f"{name}_{self.precision}"
            stored = half.astype(np.float32) if self.rounded else half
            self.graph.initializer.append(numpy_helper.from_array(stored, self.made[name]))
        return self.made[name]

    def _fold_statistics(self, node: NodeProto) -> None:
        """γ(x - μ)/√(σ² + ε) + β = x·scale + shift, written with mean 0, variance 1 and ε 0."""
        scale, shift, mean, variance = (
            numpy_helper.to_array(self.held[name]).astype(np.float64) for name in node.input[1:5]
        )
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        scale = scale / np.sqrt(variance + epsilon)
        folded = {
            "scale": scale,
            "shift": shift - mean * scale,
            "mean": np.zeros_like(mean),
            "variance": np.ones_like(mean),
        }
        for place, (what, values) in enumerate(folded.items(), 1):
            name = f"{node.output[0]}_{what}"
            self.held[name] = numpy_helper.from_array(values.astype(np.float32), name)
            self.floats.add(name)
            node.input[place] = name
        for attribute in [a for a in node.attribute if a.name == "epsilon"]:
            node.attribute.remove(attribute)
        node.attribute.append(helper.make_attribute("epsilon", 0.0))

    def _as_output(self, name: str) -> NodeProto:
        """An output keeps its name and type; its maker and other readers take another name."""
        inner = f"{name}_{self.precision}_result"
        for node in self.nodes:
            for names in (node.input, node.output):
                for place, found in enumerate(names):
                    if found == name:
                        names[place] = inner
        return helper.make_node("Cast", [inner], [name], to=TensorProto.FLOAT)

    def _drop_unused(self) -> None:
        used = {name for node in self.nodes for name in {*node.input, *captured(node)}}
        kept = [t for t in self.graph.initializer if t.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    typed = [*inferred.value_info, *inferred.input, *inferred.output]
    found = {v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {t.name for t in inferred.initializer if t.data_type == TensorProto.FLOAT}


def _rename(node: NodeProto, names: dict[str, str]) -> None:
    """Give what a node's subgraphs use of the outer graph other names."""
    for body in _bodies(node):
        own = {i.name for i in body.input} | {name for inner in body.node for name in inner.output}
        outer = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            for place, name in enumerate(inner.input):
                inner.input[place] = outer.get(name, name)
            _rename(inner, outer)
