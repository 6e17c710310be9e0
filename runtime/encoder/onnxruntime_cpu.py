"""The encoder on the CPU by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.cpu_stages import SLOTS, CpuStages
from mclst.runtime.encoder.micro_batches import MicroBatches
from mclst.runtime.encoder.ring import Stages
from mclst.runtime.encoder.session import AT_ONCE, INPUT, OUTPUTS, check_tiles, is_heavy
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.progress import Clock
from mclst.runtime.resources import available_cores


class OnnxSession:
    """ONNX Runtime on the CPU."""

    provider = "cpu"

    def __init__(self, path: Path, *, threads: int | None = None, at_once: int = AT_ONCE) -> None:
        """Open `path`; threads: None for all cores.

        at_once: tiles that `encode` is going to be given. As many of the threads as there are tiles each take some
        through the whole network; where threads are left, they help inside the operators.
        Raises BundleError where the graph is not an encoder.
        """
        threads = threads or available_cores()
        micro_batches = min(threads, at_once)
        self._session = open_graph(path, "cpu", threads=threads - micro_batches + 1)
        self.engine = f"onnxruntime {_onnxruntime().__version__}"
        self._output, self._tile, _ = check_encoder(self._session, path)
        self._run = MicroBatches(self._encode, micro_batches, heavy=is_heavy(path))

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [N, H, W, 3] → embeddings (or expression) float32 [N, D]."""
        check_tiles(tiles, self._tile)
        return self._run(tiles)

    def _encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        found: list[Any] = self._session.run([self._output], {INPUT: tiles})
        embedding: NDArray[np.float32] = found[0]
        return embedding

    def stages(
        self, batch: int, *, group_rows: int, on_device: bool, clock: Clock, slots: int | None = None
    ) -> Stages:
        """See `Session`."""
        return CpuStages(
            self.encode, batch=(batch, *self._tile), group_rows=group_rows, clock=clock, slots=slots or SLOTS
        )


def check_encoder(session: Any, path: Path) -> tuple[str, tuple[int, ...], int]:
    """Name of the output, [H, W, 3] of a tile and D of ONNX Runtime's session; BundleError where it is no encoder."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = [(i.name, i.type, len(i.shape)) for i in inputs]
    if found != [(INPUT, "tensor(uint8)", 4)] or outputs[0].name not in OUTPUTS:
        raise BundleError(
            f"{path} is not an encoder from uint8 {INPUT!r} to {' or '.join(OUTPUTS)}; export the bundle again"
        )
    if not isinstance(inputs[0].shape[0], str):
        raise BundleError(f"{path} takes {inputs[0].shape[0]} tiles at a time only; export the bundle again")
    return outputs[0].name, tuple(inputs[0].shape[1:]), outputs[0].shape[-1]


def open_graph(
    path: Path, provider: str, *, threads: int | None = None, options_of_cuda: dict[str, str] | None = None
) -> Any:
    """ONNX Runtime's session of any graph on `provider`, "cpu" or "cuda"; no operator falls back in silence.

    options_of_cuda: of ONNX Runtime's CUDA provider. Raises ResourceError where the provider is missing or does not
    start, BundleError where the graph does not open.
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception, and is said once
    options.intra_op_num_threads = threads or available_cores()
    # Reading threads share the cores with the encoder; spinning would take them away.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = check_onnxruntime(provider)
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    given = {} if provider == "cpu" else options_of_cuda or {}
    try:
        session = ort.InferenceSession(str(path), options, providers=[(wanted, given)])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        reason = " ".join(str(error).split())[:200]
        if "NOT_IMPLEMENTED" in reason:
            raise ResourceError(
                f"ONNX Runtime has no operator on {provider} for what {path} computes in ({reason}); choose another "
                "--precision or --provider"
            ) from error
        kind = BundleError if provider == "cpu" else ResourceError
        raise kind(f"{path} does not open on {provider} ({reason})") from error
    if session.get_providers()[0] != wanted:
        raise ResourceError(f"ONNX Runtime could not start {wanted}; check the driver or use --provider cpu")
    return session


def check_onnxruntime(provider: str) -> str:
    """ONNX Runtime's name of `provider`, "cpu" or "cuda"; raises ResourceError where it is not there."""
    wanted = "CPUExecutionProvider" if provider == "cpu" else "CUDAExecutionProvider"
    if wanted not in _onnxruntime().get_available_providers():
        raise ResourceError(f"this ONNX Runtime has no {wanted}; install mclst[gpu] or use --provider cpu")
    return wanted


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise ResourceError("onnxruntime is not installed; install mclst[cpu] or mclst[gpu]") from error
    module: ModuleType = onnxruntime
    return module
