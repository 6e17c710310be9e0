"""What an ONNX file holds, told without opening it: which other files it reads, and operators that may never end.

An ONNX file is a protocol buffer (onnx.proto, IR version 8 and later): fields are numbered, and a tensor too large to
stand in it names a file beside it. Only field numbers are needed here, so no library has to be trusted with the file.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path

from mclst.runtime.errors import BundleError

VARINT, EIGHT_BYTES, TEXT, FOUR_BYTES = 0, 1, 2, 5
MODEL_GRAPH, MODEL_FUNCTIONS = 7, 25
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE_INITIALIZER, FUNCTION_NODE = 1, 5, 15, 7
NODE_OP_TYPE, NODE_ATTRIBUTE = 4, 5
# Of an attribute: a tensor, a graph, tensors, graphs, a sparse tensor, sparse tensors.
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = {5, 10}, {6, 11}, {22, 23}
SPARSE_PARTS = {1, 2}
TENSOR_EXTERNAL, ENTRY_KEY, ENTRY_VALUE = 13, 1, 2
DEEPEST = 32
ENDLESS = {"Loop"}
"""Runs as often as a number in the graph says, whatever the size of the data; no network that is exported has it."""


def check_graph(path: Path, listed: Collection[str]) -> None:
    """Refuse, as BundleError, a graph that reads a file that is not `listed` by name, or that may never end.

    Raises BundleError too where the file is no ONNX graph.
    """
    try:
        with path.open("rb") as file:
            found = set(_model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))))
    except (ValueError, IndexError, RecursionError) as error:
        raise BundleError(f"{path} is not an ONNX graph ({error}); export the bundle again") from error
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror or error}); export the bundle again"
        ) from error
    for kind, name in sorted(found):
        if kind == "file" and name not in listed:
            raise BundleError(
                f"{path} reads {name!r}, which is no file of the bundle; export the bundle again, or do not use it"
            )
        if kind == "operator" and name in ENDLESS:
            raise BundleError(f"{path} holds a {name}, which may run for ever; export the bundle again")


Named = tuple[str, str]
"""("file", its location) or ("operator", its type)."""


def _model(data: memoryview) -> Iterator[Named]:
    for number, value in _fields(data):
        if number == MODEL_GRAPH:
            yield from _graph(value, 0)
        elif number == MODEL_FUNCTIONS:
            for inner, node in _fields(value):
                if inner == FUNCTION_NODE:
                    yield from _node(node, 0)


def _graph(data: memoryview, depth: int) -> Iterator[Named]:
    if depth > DEEPEST:
        raise ValueError("its graphs stand too deep in each other")
    for number, value in _fields(data):
        if number == GRAPH_NODE:
            yield from _node(value, depth)
        elif number == GRAPH_INITIALIZER:
            yield from _tensor(value)
        elif number == GRAPH_SPARSE_INITIALIZER:
            yield from _sparse(value)


def _node(data: memoryview, depth: int) -> Iterator[Named]:
    for number, value in _fields(data):
        if number == NODE_OP_TYPE:
            yield "operator", str(value, "utf-8")
        elif number == NODE_ATTRIBUTE:
            for part, held in _fields(value):
                if part in ATTRIBUTE_TENSORS:
                    yield from _tensor(held)
                elif part in ATTRIBUTE_GRAPHS:
                    yield from _graph(held, depth + 1)
                elif part in ATTRIBUTE_SPARSE:
                    yield from _sparse(held)


def _sparse(data: memoryview) -> Iterator[Named]:
    for number, value in _fields(data):
        if number in SPARSE_PARTS:
            yield from _tensor(value)


def _tensor(data: memoryview) -> Iterator[Named]:
    for number, value in _fields(data):
        if number == TENSOR_EXTERNAL:
            entry = {part: str(text, "utf-8") for part, text in _fields(value)}
            if entry.get(ENTRY_KEY) == "location":
                yield "file", entry.get(ENTRY_VALUE, "")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that has a length; numbers that stand in the message itself are passed over."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == VARINT:
            _, at = _varint(data, at)
            continue
        size, at = _varint(data, at) if kind == TEXT else ({EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind, -1), at)
        if size < 0 or at + size > len(data):
            raise ValueError("it is damaged or cut off")
        if kind == TEXT:
            yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of up to ten bytes, seven bits each, and where the next field begins."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        number |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return number, at
    raise ValueError("it is damaged")
