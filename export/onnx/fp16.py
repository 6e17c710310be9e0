"""Convert a graph to half precision: products in fp16 or bf16, sensitive operators in fp32, Casts between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, version_converter

from mclst.export.onnx.large_weights import read_values, with_values, without_weights
from mclst.runtime.errors import CheckpointError

Half = Literal["fp16", "bf16"]
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Always half; tensor cores accumulate them in float32."""
MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
    | {"Unsqueeze", "MaxPool", "AveragePool", "Relu", "BatchNormalization"}
)
"""Half behind a product: they move values or keep them in range."""
ARITHMETIC = frozenset({"Add", "Mul", "Neg", "Sub"})
"""Half between half operators, else fp32, so that a square, its sum and its root stay together."""

BF16_OPSET = 22
"""The first with bfloat16 convolutions."""


@dataclass
class HalfGraph:
    """A converted graph with its number of half and of fp32 operators by type."""

    model: onnx.ModelProto
    half: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)


def to_half(
    model: onnx.ModelProto, precision: Half, *, rounded: bool = False, folder: Path | None = None
) -> HalfGraph:
    """Copy an fp32 graph with its products in half precision; inputs and outputs keep their types.

    Parameters
    ----------
    model : onnx.ModelProto
        In fp32.
    precision : {"fp16", "bf16"}
    rounded : bool
        Keep fp32 operators and round each half result by a pair of Casts, for providers without half
        operators.
    folder : Path, optional
        Of the graph, where weights outside it are read one at a time.

    Raises
    ------
    CheckpointError
        If a weight is beyond the range of `precision`.

    Notes
    -----
    Operators not listed in PRODUCTS, MOVES or ARITHMETIC stay fp32, as does everything before the first
    product. The statistics of a BatchNormalization are folded in float64, so only its scale and shift are
    rounded.
    """
    bare = without_weights(model)
    weights = {v.name for v in bare.graph.input} - {v.name for v in model.graph.input}
    if precision == "bf16" and not rounded:
        bare = version_converter.convert_version(bare, BF16_OPSET)
        bare.ir_version = max(bare.ir_version, 10)
        del bare.graph.value_info[:]
    _name_constants(bare.graph)
    floats = _float_tensors(bare)
    inputs = [v for v in bare.graph.input if v.name not in weights]
    del bare.graph.input[:]
    bare.graph.input.extend(inputs)
    large = {t.name: t for t in model.graph.initializer if t.name in weights}
    return _Converter(bare, precision, rounded, floats, large, folder).run()


def _name_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers."""
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


def captured_names(node: NodeProto) -> set[str]:
    """Names of the outer graph that a node's subgraphs use."""
    names: set[str] = set()
    for body in _bodies(node):
        local = {i.name for i in body.input} | {t.name for t in body.initializer}
        local |= {name for inner in body.node for name in inner.output}
        for inner in body.node:
            names |= ({name for name in inner.input if name} | captured_names(inner)) - local
    return names


def _bodies(node: NodeProto) -> Iterator[onnx.GraphProto]:
    return (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)


class _Converter:
    """State of one conversion: which nodes are half, and the casts between."""

    def __init__(
        self,
        model: onnx.ModelProto,
        precision: Half,
        rounded: bool,
        floats: set[str],
        large: dict[str, onnx.TensorProto],
        folder: Path | None,
    ) -> None:
        self.model, self.graph = model, model.graph
        self.precision, self.rounded = precision, rounded
        self.type, self.dtype = TYPES[precision], DTYPES[precision]
        self.floats, self.large, self.folder = floats, large, folder
        self.initializers = {t.name: t for t in self.graph.initializer} | large
        self.halves: set[str] = set()
        """Outputs of half nodes."""
        self.casts: dict[str, str] = {}
        """Tensor → its copy in the other type."""
        self.nodes: list[NodeProto] = []

    def run(self) -> HalfGraph:
        """Convert in place."""
        half = self._choose()
        result = HalfGraph(self.model)
        for number, node in enumerate(list(self.graph.node)):
            if number in half:
                self._convert(node)
                result.half[node.op_type] += 1
            else:
                self._keep(node)
                if any(name in self.floats for name in node.output):
                    result.kept[node.op_type] += 1
        outputs = set() if self.rounded else {o.name for o in self.graph.output} & self.halves
        self.nodes += [self._as_output(name) for name in sorted(outputs)]
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        self._drop_unused()
        return result

    def _choose(self) -> set[int]:
        """Indices of the nodes to convert."""
        after_product: set[str] = set()
        chosen: set[int] = set()
        nodes = list(self.graph.node)
        for number, node in enumerate(nodes):
            product = node.op_type in PRODUCTS
            if product or after_product & {*node.input, *captured_names(node)}:
                after_product |= set(node.output)
                if node.op_type in PRODUCTS | MOVES | ARITHMETIC and node.output[0] in self.floats:
                    chosen.add(number)
        producers = {name: number for number, node in enumerate(nodes) for name in node.output}
        borders: set[int] = set()
        for number, node in enumerate(nodes):
            for name in {*node.input, *captured_names(node)}:
                pair = {number, producers.get(name, number)}
                if name in self.floats and len(pair) == 2 and len(pair & chosen) == 1:
                    borders |= pair & chosen
        return chosen - {n for n in borders if nodes[n].op_type in ARITHMETIC}

    def _convert(self, node: NodeProto) -> None:
        if node.op_type == "BatchNormalization":
            self._fold_statistics(node)
        for index, name in enumerate(node.input):
            if name in self.initializers and name in self.floats:
                node.input[index] = self._half_weight(name)
            elif name in self.floats and name not in self.halves:
                node.input[index] = self._cast(name, self.type)
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in self.floats:
                continue
            if self.rounded:
                node.output[index] = f"{name}_exact"
                self.nodes += self._round(node.output[index], name)
            self.halves.add(name)

    def _keep(self, node: NodeProto) -> None:
        for index, name in enumerate(node.input):
            if name in self.halves:
                node.input[index] = self._cast(name, TensorProto.FLOAT)
        names = {
            name: self._cast(name, TensorProto.FLOAT) for name in sorted(captured_names(node) & self.halves)
        }
        if names:
            _rename(node, names)
        self.nodes.append(node)

    def _cast(self, name: str, to: int) -> str:
        """The tensor in the other type; the Cast is added at its first use."""
        if self.rounded and to == TensorProto.FLOAT:
            return name
        if name not in self.casts:
            self.casts[name] = f"{name}_{'float' if to == TensorProto.FLOAT else self.precision}"
            if self.rounded:
                self.nodes += self._round(name, self.casts[name])
            else:
                self.nodes.append(helper.make_node("Cast", [name], [self.casts[name]], to=to))
        return self.casts[name]

    def _round(self, name: str, to: str) -> list[NodeProto]:
        short = f"{to}_short"
        return [
            helper.make_node("Cast", [name], [short], to=self.type),
            helper.make_node("Cast", [short], [to], to=TensorProto.FLOAT),
        ]

    def _half_weight(self, name: str) -> str:
        if name not in self.casts:
            exact = read_values(self.initializers[name], self.folder)
            with np.errstate(over="ignore"):
                half = exact.astype(self.dtype)
            if not np.isfinite(half.astype(np.float32)).all():
                raise CheckpointError(
                    f"the weight {name} reaches {np.abs(exact).max():.3g}, beyond the range of "
                    f"{self.precision}; export without --precision {self.precision}"
                )
            self.casts[name] = f"{name}_{self.precision}"
            stored = half.astype(np.float32) if self.rounded else half
            self.graph.initializer.append(numpy_helper.from_array(stored, self.casts[name]))
        return self.casts[name]

    def _fold_statistics(self, node: NodeProto) -> None:
        """Write γ(x - μ)/√(σ² + ε) + β as x·scale + shift with mean 0, variance 1 and ε 0."""
        scale, shift, mean, variance = (
            read_values(self.initializers[name], self.folder).astype(np.float64) for name in node.input[1:5]
        )
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        scale = scale / np.sqrt(variance + epsilon)
        folded = {
            "scale": scale,
            "shift": shift - mean * scale,
            "mean": np.zeros_like(mean),
            "variance": np.ones_like(mean),
        }
        for index, (suffix, values) in enumerate(folded.items(), 1):
            name = f"{node.output[0]}_{suffix}"
            self.initializers[name] = numpy_helper.from_array(values.astype(np.float32), name)
            self.floats.add(name)
            node.input[index] = name
        for attribute in [a for a in node.attribute if a.name == "epsilon"]:
            node.attribute.remove(attribute)
        node.attribute.append(helper.make_attribute("epsilon", 0.0))

    def _as_output(self, name: str) -> NodeProto:
        """Keep an output's name and type; its producer and other consumers use another name."""
        inner = f"{name}_{self.precision}_result"
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, other in enumerate(names):
                    if other == name:
                        names[index] = inner
        return helper.make_node("Cast", [inner], [name], to=TensorProto.FLOAT)

    def _drop_unused(self) -> None:
        used = {name for node in self.nodes for name in {*node.input, *captured_names(node)}}
        initializers = [t for t in self.graph.initializer if t.name in used]
        initializers += [with_values(t, self.folder) for name, t in self.large.items() if name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(initializers)


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    typed = [*inferred.value_info, *inferred.input, *inferred.output]
    names = {v.name for v in typed if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {t.name for t in inferred.initializer if t.data_type == TensorProto.FLOAT}


def _rename(node: NodeProto, names: dict[str, str]) -> None:
    """Rename outer tensors in a node's subgraphs."""
    for body in _bodies(node):
        local = {i.name for i in body.input} | {name for inner in body.node for name in inner.output}
        outer = {old: new for old, new in names.items() if old not in local}
        for inner in body.node:
            for index, name in enumerate(inner.input):
                inner.input[index] = outer.get(name, name)
            _rename(inner, outer)
