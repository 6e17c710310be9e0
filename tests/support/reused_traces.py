"""Reuse of traced networks: a network that several tests export is traced once in a test session."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch

LARGEST_BYTES = 400_000_000
"""A larger graph is traced each time: writing it costs as much."""

Trace = Callable[..., onnx.ModelProto]


class _ContentPickler(pickle.Pickler):
    """Pickles a network with a hash in place of each tensor."""

    tensor_bytes = 0

    def persistent_id(self, value: Any) -> object:
        if not isinstance(value, torch.Tensor):
            return None
        content = value.detach().contiguous().numpy()
        self.tensor_bytes += content.nbytes
        return str(value.dtype), tuple(value.shape), hashlib.sha256(content.data).hexdigest()


def content_key(value: object) -> str | None:
    """Hash of a network's classes, attributes and weights; None if it is too large or cannot be pickled."""
    stream = io.BytesIO()
    pickler = _ContentPickler(stream)
    pickler.fast = True  # equal strings are written alike, whether they are one object or two
    try:
        pickler.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError):
        return None
    return hashlib.sha256(stream.getbuffer()).hexdigest() if pickler.tensor_bytes <= LARGEST_BYTES else None


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`model` with its output renamed."""
    result = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = [name if each == result.name else each for each in node.output]
        node.input[:] = [name if each == result.name else each for each in node.input]
    result.name = name
    return model


def reusing_traces(trace: Trace, folder: Path) -> Trace:
    """`trace`, with its graphs kept in `folder` by the content of its arguments; workers may share it."""

    def reused(
        module: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        output: str,
        refusal: str,
        cure: str,
        path: Path,
        translations: dict[Any, Any] | None = None,
    ) -> onnx.ModelProto:
        operators = None if translations is None else sorted(map(str, translations))
        key = content_key((module, inputs, operators))
        kept = folder / f"{key}.onnx"
        if key is not None and kept.is_file():
            return with_output(onnx.load(kept), output)
        model = trace(module, inputs, output, refusal, cure, path, translations)
        # Weights beside a graph belong to its path.
        if key is not None and not path.with_name(f"{path.name}.data").exists():
            part = kept.with_suffix(f".{os.getpid()}")
            onnx.save(model, part)
            part.replace(kept)
        return model

    return reused
