"""Divide a fitted network's ONNX graph where its linear head begins, without an ONNX library.

The parts are ONNX files in memory: an encoder from `tiles` to features, which heads on the same network share
to the byte, and a head from features to what the whole graph gives. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mclst.runtime.bundle.onnx_scan import (
    FIXED32,
    FIXED64,
    GRAPH_INITIALIZER,
    GRAPH_NODE,
    LENGTH_DELIMITED,
    MODEL_GRAPH,
    MODEL_OPSETS,
    NODE_ATTRIBUTE,
    VARINT,
    read_varint,
)

MODEL_IR_VERSION = 1
GRAPH_NAME, GRAPH_INPUT, GRAPH_OUTPUT = 2, 11, 12
NODE_INPUT, NODE_OUTPUT, NODE_OP_TYPE = 1, 2, 4
TENSOR_DIMS, TENSOR_NAME = 1, 8
VALUE_NAME, VALUE_TYPE = 1, 2
ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_GRAPHS, ATTRIBUTE_TYPE, INT = 1, 3, {6, 11}, 20, 2
FLOAT = 1
FEATURES = "features"
HEAD_WEIGHTS = ("network.head.weight", "network.projection.weight")
"""Of `mclst.models.fitted` in a traced graph; another precision adds a suffix such as _bf16."""


@dataclass(frozen=True)
class SplitGraph:
    """A graph in two: an encoder, whose output keeps its name, and a head. width: of the features between."""

    encoder: bytes
    head: bytes
    width: int


class _Field(NamedTuple):
    """A field of a message: its number, content (empty if it is a number) and all its bytes."""

    number: int
    content: memoryview
    whole: memoryview


class _Node(NamedTuple):
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nested: bool
    whole: memoryview


def split_graph(path: Path) -> SplitGraph | None:
    """Divide a graph behind the features of its linear head.

    Parameters
    ----------
    path : Path
        An encoder's graph of mclst-export, checked by `check_graph`.

    Returns
    -------
    SplitGraph or None
        None if the graph has no such head, or holds graphs within nodes.
    """
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        model = list(_fields(data))
    (graph,) = [field.content for field in model if field.number == MODEL_GRAPH]
    fields = list(_fields(graph))
    nodes = [_node(field) for field in fields if field.number == GRAPH_NODE]
    tensors = {
        _text(field.content, TENSOR_NAME): field for field in fields if field.number == GRAPH_INITIALIZER
    }
    cut = _find_cut(nodes, tensors)
    if cut is None or any(node.nested for node in nodes):
        return None
    features, width = cut
    outputs = [field for field in fields if field.number == GRAPH_OUTPUT]
    if len(outputs) != 1:
        return None
    output = _text(outputs[0].content, VALUE_NAME)
    below, above = _divide(nodes, features)
    given = {name for node in below for name in node.outputs} - {features}
    taken = {name for node in above for name in node.inputs}
    # A head that takes more than the features cannot be divided off, nor one whose names would clash.
    if not above or output in given or given & taken or FEATURES in (given | taken) - {features}:
        return None
    inputs = [field.whole for field in fields if field.number == GRAPH_INPUT]
    # A cast, since features of a graph in half precision are half.
    cast = _message(
        (NODE_INPUT, features.encode()), (NODE_OUTPUT, output.encode()), (NODE_OP_TYPE, b"Cast"),
        (NODE_ATTRIBUTE, _message((ATTRIBUTE_NAME, b"to"), (ATTRIBUTE_INT, FLOAT), (ATTRIBUTE_TYPE, INT))),
    )  # fmt: skip
    encoder: list[memoryview | bytes] = [
        *(node.whole for node in below),
        _message((GRAPH_NODE, cast), (GRAPH_NAME, b"encoder")),
        *_used(tensors, below),
        *inputs,
        _message((GRAPH_OUTPUT, _matrix(output, width))),
    ]
    rename = _message(
        (NODE_INPUT, FEATURES.encode()), (NODE_OUTPUT, features.encode()), (NODE_OP_TYPE, b"Identity")
    )
    head: list[memoryview | bytes] = [
        *([] if features == FEATURES else [_message((GRAPH_NODE, rename))]),
        *(node.whole for node in above),
        _message((GRAPH_NAME, b"head")),
        *_used(tensors, above),
        _message((GRAPH_INPUT, _matrix(FEATURES, width))),
        outputs[0].whole,
    ]
    rest = b"".join(field.whole for field in model if field.number in (MODEL_IR_VERSION, MODEL_OPSETS))

    def whole(part: list[memoryview | bytes]) -> bytes:
        return rest + _message((MODEL_GRAPH, b"".join(part)))

    return SplitGraph(whole(encoder), whole(head), width)


def _find_cut(nodes: list[_Node], tensors: dict[str, _Field]) -> tuple[str, int] | None:
    """Return the tensor that the head's product takes, and its width."""
    for node in nodes:
        if len(node.inputs) > 1 and node.inputs[1].startswith(HEAD_WEIGHTS) and node.inputs[1] in tensors:
            dims = _dims(tensors[node.inputs[1]].content)
            return (node.inputs[0], dims[1]) if len(dims) == 2 else None
    return None


def _divide(nodes: list[_Node], tensor: str) -> tuple[list[_Node], list[_Node]]:
    """Divide nodes, which are in the order of computing, into those that give `tensor` and all others."""
    needed, below, above = {tensor}, list[_Node](), list[_Node]()
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            below.append(node)
        else:
            above.append(node)
    return below[::-1], above[::-1]


def _used(tensors: dict[str, _Field], nodes: list[_Node]) -> Iterator[memoryview]:
    names = {name for node in nodes for name in node.inputs}
    return (field.whole for name, field in tensors.items() if name in names)


def _node(field: _Field) -> _Node:
    parts = list(_fields(field.content))
    return _Node(
        tuple(str(part.content, "utf-8") for part in parts if part.number == NODE_INPUT),
        tuple(str(part.content, "utf-8") for part in parts if part.number == NODE_OUTPUT),
        any(
            inner.number in ATTRIBUTE_GRAPHS
            for part in parts
            if part.number == NODE_ATTRIBUTE
            for inner in _fields(part.content)
        ),
        field.whole,
    )


def _text(message: memoryview, number: int) -> str:
    return next((str(field.content, "utf-8") for field in _fields(message) if field.number == number), "")


def _dims(tensor: memoryview) -> list[int]:
    """Shape of a tensor: numbers one by one, or packed."""
    dims = []
    for field in _fields(tensor):
        if field.number == TENSOR_DIMS:
            values, at = (field.content, 0) if len(field.content) else (field.whole, 1)
            while at < len(values):
                number, at = read_varint(values, at)
                dims.append(number)
    return dims


def _fields(data: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(data):
        start = at
        key, at = read_varint(data, at)
        kind, content = key & 7, data[:0]
        if kind == VARINT:
            _, at = read_varint(data, at)
        elif kind == LENGTH_DELIMITED:
            size, at = read_varint(data, at)
            content = data[at : at + size]
            at += size
        elif kind in (FIXED32, FIXED64):
            at += 4 if kind == FIXED32 else 8
        else:
            raise ValueError("it is damaged")
        yield _Field(key >> 3, content, data[start:at])


def _matrix(name: str, width: int) -> bytes:
    """A value float32 [N, width]."""
    shape = _message((1, _message((2, b"N"))), (1, _message((1, width))))
    kind = _message((1, _message((1, FLOAT), (2, shape))))
    return _message((VALUE_NAME, name.encode()), (VALUE_TYPE, kind))


def _message(*fields: tuple[int, bytes | int]) -> bytes:
    """Encode fields: numbers, texts and messages."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [_varint(number << 3 | VARINT), _varint(value)]
        else:
            parts += [_varint(number << 3 | LENGTH_DELIMITED), _varint(len(value)), value]
    return b"".join(parts)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
