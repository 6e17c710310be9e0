"""Scan an untrusted ONNX file for the files it reads and for operators that may never end.

An ONNX file is a protocol buffer (onnx.proto, IR version 8 and later): fields are numbered, and a large
tensor may be in another file that it names. Only field numbers are needed, so no ONNX library has to parse
the untrusted file.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Collection, Iterator
from pathlib import Path

from mclst.runtime.errors import BundleError

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types."""
MODEL_GRAPH, MODEL_OPSETS, MODEL_FUNCTIONS = 7, 8, 25
OPSET_VERSION = 2
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE_INITIALIZER = 1, 5, 15
FUNCTION_NAME, FUNCTION_NODE = 1, 7
NODE_OP_TYPE, NODE_ATTRIBUTE = 4, 5
# Of an attribute: a tensor, a graph, tensors, graphs, a sparse tensor, sparse tensors.
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = {5, 10}, {6, 11}, {22, 23}
SPARSE_PARTS = {1, 2}
TENSOR_EXTERNAL, ENTRY_KEY, ENTRY_VALUE = 13, 1, 2
MAX_DEPTH = 32
UNBOUNDED_OPERATORS = {"Loop"}
"""A number in the graph sets its iterations, whatever the size of the data; no exported network needs it."""


def check_graph(path: Path, listed: Collection[str]) -> None:
    """Raise BundleError if a graph reads other files than its own weights, may never end, or is no ONNX
    graph.

    Its weights are the file `NAME.onnx.data`, if `listed`: the key of an engine covers no other file.
    """
    try:
        with path.open("rb") as file:
            findings = set(_model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))))
    except (ValueError, IndexError, RecursionError) as error:
        raise BundleError(f"{path} is not an ONNX graph ({error}); export the bundle again") from error
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror or error}); export the bundle again"
        ) from error
    for kind, name in sorted(findings):
        if kind == "file" and name not in listed:
            raise BundleError(
                f"{path} reads {name!r}, which is no file of the bundle; "
                "export the bundle again, or do not use it"
            )
        if kind == "file" and name != f"{path.name}.data":
            raise BundleError(
                f"{path} reads {name!r}, but its weights belong in {path.name}.data; export the bundle again"
            )
        # Runtimes inline functions: each level of calls can double the graph.
        if kind == "call" and ("function", name) in findings:
            raise BundleError(
                f"{path} has a function that calls the function {name!r}; export the bundle again"
            )
        if kind == "operator" and name in UNBOUNDED_OPERATORS:
            raise BundleError(f"{path} holds a {name}, which may run forever; export the bundle again")


def opset_version(path: Path) -> int:
    """Version of the standard operators that a graph uses; 0 if it says none."""
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for number, opset in _fields(data):
            if number == MODEL_OPSETS and not any(len(domain) for _, domain in _fields(opset)):
                at = bytes(opset).rfind(bytes([OPSET_VERSION << 3 | VARINT]))
                return read_varint(opset, at + 1)[0]
    return 0


def graph_sha256(path: Path) -> str:
    """SHA-256 of what a graph computes: without its metadata_props, and without weights in another file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number, content in _fields(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))):
            if number in (MODEL_GRAPH, MODEL_OPSETS, MODEL_FUNCTIONS):
                digest.update(f"{number} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()


Finding = tuple[str, str]
"""("file", its location), ("operator", its type), ("function", its name) or ("call", an operator in a
function).
"""


def _model(data: memoryview) -> Iterator[Finding]:
    for number, value in _fields(data):
        if number == MODEL_GRAPH:
            yield from _graph(value, 0)
        elif number == MODEL_FUNCTIONS:
            for inner, node in _fields(value):
                if inner == FUNCTION_NAME:
                    yield "function", str(node, "utf-8")
                elif inner == FUNCTION_NODE:
                    for kind, name in _node(node, 0):
                        yield kind, name
                        if kind == "operator":
                            yield "call", name


def _graph(data: memoryview, depth: int) -> Iterator[Finding]:
    if depth > MAX_DEPTH:
        raise ValueError("its graphs are nested too deeply")
    for number, value in _fields(data):
        if number == GRAPH_NODE:
            yield from _node(value, depth)
        elif number == GRAPH_INITIALIZER:
            yield from _tensor(value)
        elif number == GRAPH_SPARSE_INITIALIZER:
            yield from _sparse(value)


def _node(data: memoryview, depth: int) -> Iterator[Finding]:
    for number, value in _fields(data):
        if number == NODE_OP_TYPE:
            yield "operator", str(value, "utf-8")
        elif number == NODE_ATTRIBUTE:
            for part, content in _fields(value):
                if part in ATTRIBUTE_TENSORS:
                    yield from _tensor(content)
                elif part in ATTRIBUTE_GRAPHS:
                    yield from _graph(content, depth + 1)
                elif part in ATTRIBUTE_SPARSE:
                    yield from _sparse(content)


def _sparse(data: memoryview) -> Iterator[Finding]:
    for number, value in _fields(data):
        if number in SPARSE_PARTS:
            yield from _tensor(value)


def _tensor(data: memoryview) -> Iterator[Finding]:
    for number, value in _fields(data):
        if number == TENSOR_EXTERNAL:
            entry = {part: str(text, "utf-8") for part, text in _fields(value)}
            if entry.get(ENTRY_KEY) == "location":
                yield "file", entry.get(ENTRY_VALUE, "")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field; skips numeric fields."""
    position = 0
    while position < len(data):
        key, position = read_varint(data, position)
        wire_type = key & 7
        if wire_type == VARINT:
            _, position = read_varint(data, position)
            continue
        size, position = (
            read_varint(data, position)
            if wire_type == LENGTH_DELIMITED
            else ({FIXED64: 8, FIXED32: 4}.get(wire_type, -1), position)
        )
        if size < 0 or position + size > len(data):
            raise ValueError("it is damaged or cut off")
        if wire_type == LENGTH_DELIMITED:
            yield key >> 3, data[position : position + size]
        position += size


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of up to ten bytes with seven bits each, and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        number |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return number, position
    raise ValueError("it is damaged")
