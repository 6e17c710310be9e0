"""The encoder on the CPU by ONNX Runtime, and how any graph is opened on ONNX Runtime."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.cpu_stages import CpuSession
from mclst.runtime.encoder.micro_batches import MicroBatches, is_heavy
from mclst.runtime.encoder.session import INPUT, OUTPUTS
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.resources import available_cores

COMPUTE_SIZES = {
    *(
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Gather",
        "Max",
        "Min",
    ),
    *("Mod", "Mul", "Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub"),
    *("Unsqueeze", "Where"),
}
"""Operators of a few integers, which ONNX Runtime leaves on the CPU beside a GPU by design."""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime's name for where a graph in memory has the files of its weights."""
_LOADING = Lock()


def check_onnxruntime(provider: str) -> str:
    """ONNX Runtime's name of `provider`, "cpu" or "cuda"; ResourceError if it is not available."""
    name = "CPUExecutionProvider" if provider == "cpu" else "CUDAExecutionProvider"
    if name not in _onnxruntime().get_available_providers():
        raise ResourceError(f"this ONNX Runtime has no {name}; install mclst[gpu] or use --provider cpu")
    if provider != "cpu":
        # Two threads that redirect stdout would each put back what the other has set.
        with _LOADING:
            _load_cuda_libraries()
    return name


@cache
def _load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from the wheels of `mclst[gpu]`, which are on no library path."""
    ort = _onnxruntime()
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # where it prints what it does not find
            ort.preload_dlls()


def open_graph(
    path: Path,
    provider: str,
    *,
    content: bytes | None = None,
    threads: int | None = None,
    cuda_options: dict[str, str] | None = None,
) -> Any:
    """Open any graph on `provider`, "cpu" or "cuda", without silent fallback to another provider.

    content: the graph, in place of the file's; its weights may be in the file's folder. threads: default all
    cores. cuda_options: of ONNX Runtime's CUDA provider.
    Raises ResourceError if the provider is missing or does not start, BundleError if the graph does not open.
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions, and need not be logged as well
    options.intra_op_num_threads = threads or available_cores()
    # Reading threads share the cores with the encoder; spinning would take them away.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    name = check_onnxruntime(provider)
    tells_where = hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")
    if provider != "cpu":
        # Without a way to ask, even operators that compute sizes, which belong on the CPU, are refused.
        entry = (
            "session.record_ep_graph_assignment_info" if tells_where else "session.disable_cpu_ep_fallback"
        )
        options.add_session_config_entry(entry, "1")
    if content is not None:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    provider_options = {} if provider == "cpu" else cuda_options or {}
    try:
        session = ort.InferenceSession(content or str(path), options, providers=[(name, provider_options)])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        reason = " ".join(str(error).split())[:200]
        if "NOT_IMPLEMENTED" in reason:
            raise ResourceError(
                f"ONNX Runtime has no operator on {provider} for what {path} computes in ({reason}); "
                "choose another --precision or --provider"
            ) from error
        kind = BundleError if provider == "cpu" else ResourceError
        raise kind(f"{path} does not open on {provider} ({reason})") from error
    if session.get_providers()[0] != name:
        raise ResourceError(f"ONNX Runtime could not start {name}; check the driver or use --provider cpu")
    if provider != "cpu" and tells_where and (left := operators_on_cpu(session) - COMPUTE_SIZES):
        raise ResourceError(
            f"ONNX Runtime would compute {', '.join(sorted(left))} of {path} on the CPU, not on {provider}; "
            "choose another --precision or --provider"
        )
    return session


def operators_on_cpu(session: Any) -> set[str]:
    """Types of the operators that ONNX Runtime, 1.24 or newer, computes on the CPU."""
    return {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    }


def check_encoder(session: Any, path: Path) -> tuple[str, tuple[int, ...], int]:
    """Output name, tile [H, W, 3] and D of ONNX Runtime's session; BundleError if it is not an encoder."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    signature = [(i.name, i.type, len(i.shape)) for i in inputs]
    if signature != [(INPUT, "tensor(uint8)", 4)] or outputs[0].name not in OUTPUTS:
        raise BundleError(
            f"{path} is not an encoder from uint8 {INPUT!r} to {' or '.join(OUTPUTS)}; "
            "export the bundle again"
        )
    if not isinstance(inputs[0].shape[0], str):
        raise BundleError(f"{path} takes {inputs[0].shape[0]} tiles at a time only; export the bundle again")
    return outputs[0].name, tuple(inputs[0].shape[1:]), outputs[0].shape[-1]


class OnnxSession(CpuSession):
    """An encoder on the CPU by ONNX Runtime; see `Session`.

    Parameters
    ----------
    path : Path
        The graph.
    content : bytes, optional
        The graph, in place of the file's.
    threads : int, optional
        Default all cores.
    lanes : int, optional
        Threads that each take tiles through the whole network; the others work inside operators. Default all
        of them.

    Raises
    ------
    BundleError
        If the graph is not an encoder.
    ResourceError
        If ONNX Runtime is not installed.
    """

    provider = "cpu"

    def __init__(
        self,
        path: Path,
        *,
        content: bytes | None = None,
        threads: int | None = None,
        lanes: int | None = None,
    ) -> None:
        threads = threads or available_cores()
        lanes = min(threads, lanes or threads)
        session = open_graph(path, "cpu", content=content, threads=threads - lanes + 1)
        self.engine = f"onnxruntime {_onnxruntime().__version__}"
        output, self._tile, _ = check_encoder(session, path)

        # Not a method: in a cycle with this object, the weights would outlive it until garbage is collected.
        def encode(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
            embedding: NDArray[np.float32] = session.run([output], {INPUT: tiles})[0]
            return embedding

        self._run = MicroBatches(encode, lanes, heavy=is_heavy(path))


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise ResourceError("onnxruntime is not installed; install mclst[cpu] or mclst[gpu]") from error
    module: ModuleType = onnxruntime
    return module
