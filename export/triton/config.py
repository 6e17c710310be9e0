"""`config.pbtxt` of each model of a server, in protobuf's text form.

Fields and their meaning: Triton's model_config.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mclst.runtime.serving.server_manifest import (
    ASK,
    EFFECTIVE_K,
    EMBEDDING,
    EXPRESSION,
    MANIFEST,
    NEAREST,
    TILES,
    Served,
    inner_model,
)
from mclst.runtime.serving.triton_models import ENCODED, VERSION

MAX_QUEUE = 32
"""Requests that wait for the encoder; the next one is answered 503, so that a client sends less."""

QUEUE_US = 60_000_000
"""A request that waited so long is answered 503."""

MERGE_US = 5000
"""How long a request waits for others to share a batch with."""


class Word(str):
    """An enumerator: written without quotes."""


Message = Mapping[str, Any]


def pbtxt(message: Message) -> str:
    """Protobuf's text form of a message: mappings are messages, lists repeated fields, `Word`s enumerators."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: object) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value.encode())) + '"'
    if isinstance(value, bool | int):
        return str(value).lower()
    raise TypeError(f"{value!r} has no text form")


def _escaped(byte: int) -> str:
    plain = 32 <= byte < 127 and byte not in b'"\\'
    return chr(byte) if plain else f"\\{byte:03o}"


def encoder_config(served: Served, output: str) -> Message:
    """The encoder under its C++ backend; output: the graph's own name of it."""
    manifest = served.bundle.manifest
    tensorrt = served.backend == "tensorrt"
    dims = [manifest.tile.size_px, manifest.tile.size_px, 3]
    # The first run of a batch is the slow one: memory is taken, kernels are chosen.
    warm = [_warm_up(TILES, "TYPE_UINT8", dims, n) for n in sorted({1, served.max_batch})]
    return {
        "name": inner_model(served.name, "encoder"),
        "backend": served.backend,
        "max_batch_size": served.max_batch,
        "input": [_tensor(TILES, "TYPE_UINT8", dims)],
        "output": [_tensor(output, "TYPE_FP32", [manifest.encoder.embedding_dim])],
        **_one_version(),
        **_merging(),
        "instance_group": [{"count": 1, "kind": Word("KIND_GPU" if tensorrt else "KIND_AUTO")}],
        "model_warmup": warm,
    }


def retrieval_config(served: Served) -> Message:
    """Retrieval in Triton's Python backend, on the CPU."""
    return {
        **_python(served, "retrieval"),
        "max_batch_size": served.max_batch,
        "input": [_tensor(EMBEDDING, "TYPE_FP32", [_width(served)])],
        "output": _outputs(served),
        **_merging(),
        "model_warmup": [_warm_up(EMBEDDING, "TYPE_FP32", [_width(served)], 1)],
    }


def direct_config(served: Served) -> Message:
    """The check of a regression's expression."""
    return {
        **_python(served, "direct"),
        "max_batch_size": served.max_batch,
        "input": [_tensor(ENCODED, "TYPE_FP32", [_width(served)])],
        "output": _outputs(served),
        **_merging(),
    }


def manifest_config(served: Served) -> Message:
    """What a client has to know."""
    return {
        **_python(served, "manifest"),
        "max_batch_size": 0,
        "input": [_tensor(ASK, "TYPE_INT32", [1])],
        "output": [_tensor(MANIFEST, "TYPE_STRING", [1])],
    }


def ensemble_config(served: Served, output: str) -> Message:
    """Tiles in, expression out; output: the encoder's."""
    size_px = served.bundle.manifest.tile.size_px
    retrieves = served.bundle.manifest.kind == "retrieval"
    second, takes = ("retrieval", EMBEDDING) if retrieves else ("direct", ENCODED)
    gives = [tensor["name"] for tensor in _outputs(served)]
    steps = [
        _step(served, "encoder", {TILES: TILES}, {output: "encoded"}),
        _step(served, second, {takes: "encoded"}, {name: name for name in gives}),
    ]
    return {
        "name": served.name,
        "platform": "ensemble",
        "max_batch_size": served.max_batch,
        "input": [_tensor(TILES, "TYPE_UINT8", [size_px, size_px, 3])],
        "output": _outputs(served),
        **_one_version(),
        "ensemble_scheduling": {"step": steps},
    }


def _python(served: Served, part: str) -> dict[str, Any]:
    return {
        "name": inner_model(served.name, part),
        "backend": "python",
        **_one_version(),
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
    }


def _outputs(served: Served) -> list[dict[str, Any]]:
    manifest = served.bundle.manifest
    found = [_tensor(EXPRESSION, "TYPE_FP32", [manifest.genes])]
    if manifest.kind == "retrieval":
        found += [_tensor(name, "TYPE_FP32", [1]) for name in (NEAREST, EFFECTIVE_K)]
    return found


def _width(served: Served) -> int:
    return served.bundle.manifest.encoder.embedding_dim


def _tensor(name: str, kind: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Word(kind), "dims": dims}


def _one_version() -> dict[str, Any]:
    return {"version_policy": {"specific": {"versions": [int(VERSION)]}}}


def _merging() -> dict[str, Any]:
    """Requests that wait share a batch; too many of them are turned away."""
    policy = {
        "timeout_action": Word("REJECT"),
        "default_timeout_microseconds": QUEUE_US,
        "max_queue_size": MAX_QUEUE,
    }
    return {
        "dynamic_batching": {"max_queue_delay_microseconds": MERGE_US, "default_queue_policy": policy},
    }


def _warm_up(name: str, kind: str, dims: list[int], batch: int) -> Message:
    value = {"data_type": Word(kind), "dims": dims, "zero_data": True}
    return {
        "name": f"{batch} at once",
        "batch_size": batch,
        "inputs": [{"key": name, "value": value}],
    }


def _step(served: Served, part: str, takes: dict[str, str], gives: dict[str, str]) -> Message:
    return {
        "model_name": inner_model(served.name, part),
        "model_version": int(VERSION),
        "input_map": [{"key": own, "value": shared} for own, shared in takes.items()],
        "output_map": [{"key": own, "value": shared} for own, shared in gives.items()],
    }
