"""CUDA device of the encoder: streams, events, pinned memory and graphs, by cuda-bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.driver import CudaBindings, NoDevice
from mclst.kernels.definition.contract import ProviderError
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.errors import ResourceError
from mclst.runtime.resources import available_cores

DRIVER_VERSION = Path("/sys/module/nvidia/version")
_PORTABLE = 1
_NON_BLOCKING = 1
_BLOCKING_SYNC = 1
SPARE_CORES = 8
"""With no more cores than these, a wait must not spin: the core belongs to a decoder."""
_NAME_BYTES = 256


class CudaDevice(CudaBindings):
    """Device 0, in the primary context, which TensorRT, ONNX Runtime and the retrieval kernels share.

    Streams do not synchronize with the default stream. Raises ResourceError without a device or
    cuda-bindings, or if a driver call fails.
    """

    def __init__(self) -> None:
        try:
            super().__init__(0)
        except ImportError as error:
            raise ResourceError("cuda-bindings is not installed; install mclst[gpu]") from error
        except NoDevice as error:
            raise ResourceError(
                f"no CUDA device was found ({error.why}); install the NVIDIA driver or use --provider cpu"
            ) from error
        name = bytes(self._call("cuDeviceGetName", _NAME_BYTES, self._device)).split(b"\0")[0].decode()
        self.gpu = Gpu(
            name=name,
            compute_capability=f"{self.architecture // 10}.{self.architecture % 10}",
            driver=self._driver_version(),
        )

    def current(self) -> AbstractContextManager[None]:
        """Make the device's context current in this thread, for libraries that use the current context."""
        return self._current()

    def create_stream(self) -> int:
        """Create a stream."""
        with self._current():
            return int(self._call("cuStreamCreate", _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream that has no work."""
        with self._current():
            self._call("cuStreamDestroy", stream)

    def create_event(self) -> Any:
        """Create an event with timing."""
        with self._current():
            return self._call("cuEventCreate", _BLOCKING_SYNC if available_cores() <= SPARE_CORES else 0)

    def record(self, event: Any, stream: int) -> None:
        """Record all work of `stream` so far in `event`."""
        with self._current():
            self._call("cuEventRecord", event, stream)

    def stream_wait(self, stream: int, event: Any) -> None:
        """Make later work of `stream` wait for `event`, on the device."""
        with self._current():
            self._call("cuStreamWaitEvent", stream, event, 0)

    def done(self, event: Any) -> bool:
        """Whether the work recorded in `event` is done."""
        with self._current():
            (status,) = self._cuda.cuEventQuery(event)
        if status == self._cuda.CUresult.CUDA_ERROR_NOT_READY:
            return False
        self._check("cuEventQuery", status)
        return True

    def synchronize(self, event: Any) -> None:
        """Block until `event` is done."""
        with self._current():
            self._call("cuEventSynchronize", event)

    def elapsed(self, start: Any, end: Any) -> float:
        """Seconds between two events that are done."""
        with self._current():
            return float(self._call("cuEventElapsedTime", start, end)) / 1000

    def destroy_event(self, event: Any) -> None:
        """Destroy an event."""
        with self._current():
            self._call("cuEventDestroy", event)

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory, uint8 [nbytes]; free it with `free_pinned`."""
        with self._current():
            address = int(self._call("cuMemHostAlloc", nbytes, _PORTABLE))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        """Free pinned memory."""
        with self._current():
            self._call("cuMemFreeHost", memory.ctypes.data)

    def copy_to_device(self, to: int, source: NDArray[Any], stream: int) -> None:
        """Copy a C-ordered pinned array to the device, on `stream`."""
        with self._current():
            self._call("cuMemcpyHtoDAsync", to, source.ctypes.data, source.nbytes, stream)

    def copy_to_host(self, to: NDArray[Any], source: int, stream: int) -> None:
        """Copy from the device into a C-ordered pinned array, on `stream`."""
        with self._current():
            self._call("cuMemcpyDtoHAsync", to.ctypes.data, source, to.nbytes, stream)

    def copy_on_device(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Copy on the device, on `stream`."""
        with self._current():
            self._call("cuMemcpyDtoDAsync", to, source, nbytes, stream)

    def zero(self, address: int, nbytes: int, stream: int) -> None:
        """Fill with zeros, on `stream`."""
        with self._current():
            self._call("cuMemsetD8Async", address, 0, nbytes, stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """Capture the work that `enqueue` submits to `stream` as a graph, without running it."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with self._current():
            self._call("cuStreamBeginCapture", stream, mode)
            try:
                enqueue()
            finally:
                # A failed capture must end too, or the stream stays unusable.
                status, graph = self._cuda.cuStreamEndCapture(stream)
            self._check("cuStreamEndCapture", status)
            try:
                return self._call("cuGraphInstantiate", graph, 0)
            finally:
                self._call("cuGraphDestroy", graph)

    def replay(self, graph: Any, stream: int) -> None:
        """Run a graph on `stream`."""
        with self._current():
            self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Destroy a graph."""
        with self._current():
            self._call("cuGraphExecDestroy", graph)

    def _driver_version(self) -> str:
        try:
            return DRIVER_VERSION.read_text().strip()
        except OSError:
            return f"CUDA {self._call('cuDriverGetVersion')}"

    def _check(self, function: str, status: Any) -> None:
        if int(status) != 0:
            raise ResourceError(
                f"the CUDA device answers {status.name} to {function}; "
                "run again, and if it persists use --provider cpu"
            )

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            return super()._call(function, *arguments)
        except ProviderError as error:
            raise ResourceError(str(error)) from error
