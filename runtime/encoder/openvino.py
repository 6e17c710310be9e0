"""The encoder on OpenVINO: a processor's own half-precision arithmetic (AMX, AVX-512) for a bundle's bf16 graph."""

from __future__ import annotations

import threading
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

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What OpenVINO may compute in for a graph of a precision; quantised operators of an int8 graph stay int8."""


class OpenVinoSession:
    """OpenVINO on the CPU, one stream a thread."""

    provider = "openvino"

    def __init__(
        self, path: Path, precision: str = "fp32", *, threads: int | None = None, at_once: int = AT_ONCE
    ) -> None:
        """Open the graph `path`, which is of `precision`; threads: None for all cores. at_once: as OnnxSession's.

        Raises ResourceError where OpenVINO is missing or the processor does not compute in `precision`, BundleError
        where the graph is not an encoder.
        """
        ov = openvino()
        core = ov.Core()
        if precision not in HINTS:
            raise ResourceError(
                f"the openvino provider does not run {precision}; choose --precision {', '.join(HINTS)}"
            )
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ResourceError("this processor has no bf16 arithmetic; use --precision fp32")
        threads = threads or available_cores()
        micro_batches = min(threads, at_once)
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": micro_batches,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": HINTS[precision],
        }
        try:
            model = core.read_model(path)
            self._tile = _check(model, path)
            self._model = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:  # what OpenVINO raises
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"{path} does not open on openvino ({reason})") from error
        self.engine = f"openvino {ov.__version__.split('-')[0]}"
        self._of_thread = threading.local()
        # OpenVINO makes its tables of types at their first use. Two threads that come to that together wait for each
        # other for ever, one holding the table and one Python's lock; so the first tile goes through before any thread.
        self._encode(np.zeros((1, *self._tile), np.uint8))
        self._run = MicroBatches(self._encode, micro_batches, heavy=is_heavy(path))

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [N, H, W, 3] → embeddings (or expression) float32 [N, D]."""
        check_tiles(tiles, self._tile)
        return self._run(tiles)

    def _encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        request = getattr(self._of_thread, "request", None)
        if request is None:
            request = self._of_thread.request = self._model.create_infer_request()
        found: NDArray[np.float32] = request.infer({INPUT: tiles}, share_inputs=True)[0]
        return found

    def stages(
        self, batch: int, *, group_rows: int, on_device: bool, clock: Clock, slots: int | None = None
    ) -> Stages:
        """See `Session`."""
        return CpuStages(
            self.encode, batch=(batch, *self._tile), group_rows=group_rows, clock=clock, slots=slots or SLOTS
        )


def openvino() -> ModuleType:
    """The library; raises ResourceError where it is not installed."""
    try:
        import openvino as found
    except ImportError as error:
        raise ResourceError("openvino is not installed; install mclst[openvino]") from error
    module: ModuleType = found
    return module


def _check(model: Any, path: Path) -> tuple[int, ...]:
    """[H, W, 3] of a tile; BundleError where the graph is no encoder of any number of tiles."""
    inputs, outputs = model.inputs, model.outputs
    shape = inputs[0].partial_shape
    if (
        len(inputs) != 1
        or inputs[0].any_name != INPUT
        or inputs[0].element_type.to_string() != "u8"
        or len(shape) != 4
        or outputs[0].any_name not in OUTPUTS
    ):
        raise BundleError(
            f"{path} is not an encoder from uint8 {INPUT!r} to {' or '.join(OUTPUTS)}; export the bundle again"
        )
    if not shape[0].is_dynamic:
        raise BundleError(
            f"{path} takes {shape[0].get_length()} tiles at a time only; export the bundle again"
        )
    return tuple(axis.get_length() for axis in list(shape)[1:])
