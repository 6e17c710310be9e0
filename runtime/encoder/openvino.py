"""The encoder on the CPU by OpenVINO, which runs bf16 graphs on AMX and AVX-512."""

from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.encoder.cpu_stages import CpuSession
from mclst.runtime.encoder.micro_batches import MICRO_BATCH_SIZE, MicroBatches, is_heavy
from mclst.runtime.encoder.openvino_cache import compile_graph
from mclst.runtime.encoder.session import INPUT, OUTPUTS
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.resources import available_cores

# OpenVINO's inference precision by graph precision; quantized operators of an int8 graph stay int8.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoSession(CpuSession):
    """An encoder on the CPU by OpenVINO, one stream per lane; see `Session`.

    Parameters
    ----------
    path : Path
        The graph.
    precision : {"fp32", "bf16", "int8"}
        Precision of the graph.
    content : bytes, optional
        The graph, in place of the file's; with all its weights.
    threads : int, optional
        Default all cores.
    lanes : int, optional
        See `OnnxSession`.

    Raises
    ------
    ResourceError
        If OpenVINO is not installed or the processor does not support the precision.
    BundleError
        If the graph is not an encoder.
    """

    provider = "openvino"

    def __init__(
        self,
        path: Path,
        precision: str = "fp32",
        *,
        content: bytes | None = None,
        threads: int | None = None,
        lanes: int | None = None,
    ) -> None:
        ov = openvino()
        core = ov.Core()
        if precision not in HINTS:
            raise ResourceError(
                f"the openvino provider does not run {precision}; choose --precision {', '.join(HINTS)}"
            )
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ResourceError("this processor has neither AMX-BF16 nor AVX-512 BF16; use --precision fp32")
        threads = threads or available_cores()
        lanes = min(threads, lanes or threads)
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": lanes,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": HINTS[precision],
        }
        try:
            model = compile_graph(ov, core, path, settings, content=content)
        except RuntimeError as error:  # what OpenVINO raises
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"{path} does not open on openvino ({reason})") from error
        self._tile = _check(model, path)
        self.engine = f"openvino {ov.__version__.split('-')[0]}"
        # OpenVINO initializes its type tables on first use. Two threads doing so deadlock, one holding the
        # table and one the GIL, so encode before any thread starts: as many tiles as usual, since code is
        # generated for each number of tiles.
        heavy, encode = is_heavy(path), _Requests(model)
        encode(np.zeros((1 if heavy else MICRO_BATCH_SIZE, *self._tile), np.uint8))
        self._run = MicroBatches(encode, lanes, heavy=heavy)


class _Requests:
    """Tiles to values through a compiled model: a request for each thread."""

    def __init__(self, model: Any) -> None:
        self._model, self._of_thread = model, threading.local()

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._model.create_infer_request()
        embedding: NDArray[np.float32] = request.infer({INPUT: tiles}, share_inputs=True)[0]
        return embedding


def openvino() -> ModuleType:
    """Import OpenVINO; ResourceError if it is not installed."""
    try:
        import openvino as ov
    except ImportError as error:
        raise ResourceError("openvino is not installed; install mclst[cpu]") from error
    module: ModuleType = ov
    return module


def _check(model: Any, path: Path) -> tuple[int, ...]:
    """Tile shape [H, W, 3]; BundleError if the graph is not an encoder with a dynamic batch."""
    inputs, outputs = model.inputs, model.outputs
    shape = inputs[0].partial_shape
    if (
        len(inputs) != 1
        or inputs[0].any_name != INPUT
        or inputs[0].element_type.to_string() != "u8"
        or len(shape) != 4
        or outputs[0].get_names().isdisjoint(OUTPUTS)
    ):
        raise BundleError(
            f"{path} is not an encoder from uint8 {INPUT!r} to {' or '.join(OUTPUTS)}; "
            "export the bundle again"
        )
    if not shape[0].is_dynamic:
        raise BundleError(
            f"{path} takes {shape[0].get_length()} tiles at a time only; export the bundle again"
        )
    return tuple(axis.get_length() for axis in list(shape)[1:])
