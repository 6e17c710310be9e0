"""`config.pbtxt` of each served model, with the fields of Triton's model_config.proto."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mclst.runtime.serving.server_manifest import (
    ASK,
    EMBEDDING,
    MANIFEST,
    TILES,
    Served,
    inner_model,
)
from mclst.runtime.serving.triton_models import ENCODED, VERSION

MAX_QUEUE = 32
"""Requests that wait for the encoder; the next gets 503, so that a client slows down."""

QUEUE_US = 60_000_000
"""A request that waits longer gets 503."""

MERGE_US = 5000
"""How long a request waits for others to share its batch."""


class Enum(str):
    """An enumerator, written without quotes."""


Message = Mapping[str, Any]


def pbtxt(message: Message) -> str:
    """Protobuf's text form: mappings are messages, lists repeated fields, `Enum`s enumerators."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(item, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(item)}"


def _scalar(value: object) -> str:
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(map(_escape, value.encode())) + '"'
    if isinstance(value, bool | int):
        return str(value).lower()
    raise TypeError(f"{value!r} has no text form")


def _escape(byte: int) -> str:
    plain = 32 <= byte < 127 and byte not in b'"\\'
    return chr(byte) if plain else f"\\{byte:03o}"


def encoder_config(served: Served, output: str) -> Message:
    """The encoder on its C++ backend; `output` is the name in its graph."""
    manifest = served.bundle.manifest
    tensorrt = served.backend == "tensorrt"
    dims = [manifest.tile.size_px, manifest.tile.size_px, 3]
    # The first run of a batch size is slow: memory is allocated and kernels are chosen.
    warm = [_warm_up(TILES, "TYPE_UINT8", dims, n) for n in sorted({1, served.max_batch})]
    return {
        "name": inner_model(served.name, "encoder"),
        "backend": served.backend,
        "max_batch_size": served.max_batch,
        "input": [_tensor(TILES, "TYPE_UINT8", dims)],
        "output": [_tensor(output, "TYPE_FP32", [manifest.encoder.output_dim])],
        **_one_version(),
        **_batching(),
        "instance_group": [{"count": 1, "kind": Enum("KIND_GPU" if tensorrt else "KIND_AUTO")}],
        "model_warmup": warm,
    }


def retrieval_config(served: Served) -> Message:
    """Retrieval on the CPU in Triton's Python backend."""
    return {
        **_python(served, "retrieval"),
        "max_batch_size": served.max_batch,
        "input": [_tensor(EMBEDDING, "TYPE_FP32", [_width(served)])],
        "output": _outputs(served),
        **_batching(),
        "model_warmup": [_warm_up(EMBEDDING, "TYPE_FP32", [_width(served)], 1)],
    }


def direct_config(served: Served) -> Message:
    """Check of a regression's expression."""
    return {
        **_python(served, "direct"),
        "max_batch_size": served.max_batch,
        "input": [_tensor(ENCODED, "TYPE_FP32", [_width(served)])],
        "output": _outputs(served),
        **_batching(),
    }


def manifest_config(served: Served) -> Message:
    """The server manifest for clients."""
    return {
        **_python(served, "manifest"),
        "max_batch_size": 0,
        "input": [_tensor(ASK, "TYPE_INT32", [1])],
        "output": [_tensor(MANIFEST, "TYPE_STRING", [1])],
    }


def ensemble_config(served: Served, output: str) -> Message:
    """Tiles → expression; `output` is the encoder's."""
    size_px = served.bundle.manifest.tile.size_px
    retrieves = served.bundle.manifest.kind == "retrieval"
    input_name = EMBEDDING if retrieves else ENCODED
    steps = [
        _step(inner_model(served.name, "encoder"), {TILES: TILES}, {output: "encoded"}),
        _step(served.readout, {input_name: "encoded"}, {name: name for name in served.outputs}),
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
        "instance_group": [{"count": 1, "kind": Enum("KIND_CPU")}],
    }


def _outputs(served: Served) -> list[dict[str, Any]]:
    return [_tensor(name, "TYPE_FP32", [width]) for name, width in served.outputs.items()]


def _width(served: Served) -> int:
    return served.bundle.manifest.encoder.output_dim


def _tensor(name: str, kind: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Enum(kind), "dims": dims}


def _one_version() -> dict[str, Any]:
    return {"version_policy": {"specific": {"versions": [int(VERSION)]}}}


def _batching() -> dict[str, Any]:
    """Waiting requests share a batch; excess requests are rejected."""
    policy = {
        "timeout_action": Enum("REJECT"),
        "default_timeout_microseconds": QUEUE_US,
        "max_queue_size": MAX_QUEUE,
    }
    return {
        "dynamic_batching": {"max_queue_delay_microseconds": MERGE_US, "default_queue_policy": policy},
    }


def _warm_up(name: str, kind: str, dims: list[int], batch: int) -> Message:
    value = {"data_type": Enum(kind), "dims": dims, "zero_data": True}
    return {
        "name": f"{batch} at once",
        "batch_size": batch,
        "inputs": [{"key": name, "value": value}],
    }


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> Message:
    return {
        "model_name": model,
        "model_version": int(VERSION),
        "input_map": [{"key": name, "value": tensor} for name, tensor in inputs.items()],
        "output_map": [{"key": name, "value": tensor} for name, tensor in outputs.items()],
    }
