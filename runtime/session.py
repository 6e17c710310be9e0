"""A session: the encoder open on a provider. uint8 tiles in, embeddings out."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.lanes import HEAVY_BYTES, Lanes

PROVIDERS = ("auto", "cuda", "cpu")
INPUT = "tiles"
OUTPUTS = ("embedding", "expression")
"""What an encoder may give: embeddings or features, or the expression itself."""

AT_ONCE = 16
"""Tiles handed to an encoder at once, where nothing else is asked for."""


class Session(Protocol):
    """The one swap point between the pipeline and what executes the encoder."""

    provider: str
    """What executes: `cpu` or `cuda`."""

    note: str
    """Why `auto` did not take a faster provider that is installed; empty where there is nothing to say."""

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [N, H, W, 3] as read from the slide → embeddings (or expression) float32 [N, D]."""
        ...


class OnnxSession:
    """ONNX Runtime on the CPU or on CUDA; no operator ever falls back in silence."""

    def __init__(
        self, path: Path, provider: str, *, threads: int | None = None, at_once: int = AT_ONCE
    ) -> None:
        """Open `path` on `provider`, "cpu" or "cuda"; threads: of the CPU, None for all cores.

        at_once: tiles that `encode` is going to be given. On the CPU as many of the threads as there are tiles each
        take some through the whole network; where threads are left, they help inside the operators.
        Raises ResourceError where the provider does not start, BundleError where the graph is not an encoder.
        """
        threads = threads or _cores()
        lanes = min(threads, at_once) if provider == "cpu" else 1
        self._session = open_graph(path, provider, threads=threads - lanes + 1)
        self.provider = provider
        self.note = ""
        self._check(path)
        self._run = Lanes(self._encode, lanes, heavy=_weight_bytes(path) > HEAVY_BYTES)

    def _check(self, path: Path) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = [(i.name, i.type, len(i.shape)) for i in inputs]
        if found != [(INPUT, "tensor(uint8)", 4)] or outputs[0].name not in OUTPUTS:
            raise BundleError(
                f"{path} is not an encoder from uint8 {INPUT!r} to {' or '.join(OUTPUTS)}; export the bundle again"
            )
        self._output = outputs[0].name
        self._tile = tuple(inputs[0].shape[1:])
        if not isinstance(inputs[0].shape[0], str):
            raise BundleError(
                f"{path} takes {inputs[0].shape[0]} tiles at a time only; export the bundle again"
            )

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [N, H, W, 3] → embeddings (or expression) float32 [N, D]."""
        if tiles.shape[1:] != self._tile:
            raise BundleError(
                f"the encoder takes tiles of {self._tile}, not {tiles.shape[1:]}; the bundle's parts do not belong "
                "together, so export it again"
            )
        return self._run(tiles)

    def _encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: list[Any] = self._session.run([self._output], {INPUT: tiles})
        embedding: NDArray[np.float32] = found[0]
        return embedding


def open_graph(path: Path, provider: str, *, threads: int | None = None) -> Any:
    """ONNX Runtime's session of any graph on `provider`, "cpu" or "cuda"; raises as OnnxSession does."""
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or _cores()
    # Reading threads share the cores with the encoder; spinning would take them away.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = "CPUExecutionProvider" if provider == "cpu" else "CUDAExecutionProvider"
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if wanted not in ort.get_available_providers():
        raise ResourceError(f"this ONNX Runtime has no {wanted}; install mclst[gpu] or use --provider cpu")
    try:
        session = ort.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        reason = " ".join(str(error).split())[:200]
        kind = BundleError if provider == "cpu" else ResourceError
        raise kind(f"{path} does not open on {provider} ({reason})") from error
    if session.get_providers()[0] != wanted:
        raise ResourceError(f"ONNX Runtime could not start {wanted}; check the driver or use --provider cpu")
    return session


def _weight_bytes(path: Path) -> int:
    """Of a graph's file, and of the file beside it that holds the weights of a large one."""
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def _cores() -> int:
    """Cores this process may use; macOS does not tell them from all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise ResourceError("onnxruntime is not installed; install mclst[cpu] or mclst[gpu]") from error
    module: ModuleType = onnxruntime
    return module


def open_session(
    path: Path, provider: str = "auto", *, threads: int | None = None, at_once: int = AT_ONCE
) -> Session:
    """Open the encoder at `path`; threads, at_once: see OnnxSession.

    `auto` takes CUDA where ONNX Runtime has it and it starts, else the CPU, and says so in the session's `note`.
    Raises ResourceError where the provider asked for is missing, BundleError where the graph is not an encoder.
    """
    if provider not in PROVIDERS:
        raise ResourceError(f"there is no provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
    if provider != "auto":
        return OnnxSession(path, provider, threads=threads, at_once=at_once)
    if "CUDAExecutionProvider" not in _onnxruntime().get_available_providers():
        return OnnxSession(path, "cpu", threads=threads, at_once=at_once)
    try:
        return OnnxSession(path, "cuda", threads=threads)
    except ResourceError as error:
        session = OnnxSession(path, "cpu", threads=threads, at_once=at_once)
        session.note = f"CUDA is installed but did not start: {error}"
        return session
