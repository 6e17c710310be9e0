"""A CUDA device for the encoder: streams, events, pinned memory and graphs, by cuda-bindings."""

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

DRIVER_VERSION = Path("/sys/module/nvidia/version")
_PORTABLE = 1
_NON_BLOCKING = 1
_NAME_BYTES = 256


class CudaDevice(CudaBindings):
    """Device 0, on the primary context that TensorRT, ONNX Runtime and the retrieval kernels of this process share.

    Streams do not wait for the default one. Raises ResourceError where there is no device, no cuda-bindings, or the
    driver answers with an error.
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
        """Make the device's context the calling thread's, for libraries that look for it there."""
        return self._current()

    def free_bytes(self) -> int:
        """Device memory that is not in use."""
        with self._current():
            status, free, _ = self._cuda.cuMemGetInfo()
            self._check("cuMemGetInfo", status)
        return int(free)

    def stream(self) -> int:
        """A new stream."""
        with self._current():
            return int(self._call("cuStreamCreate", _NON_BLOCKING))

    def end_stream(self, stream: int) -> None:
        """Wait for a stream's work and give the stream back."""
        with self._current():
            self._call("cuStreamSynchronize", stream)
            self._call("cuStreamDestroy", stream)

    def event(self) -> Any:
        """A new event, which keeps its time."""
        with self._current():
            return self._call("cuEventCreate", 0)

    def record(self, event: Any, stream: int) -> None:
        """Let `event` stand for all work of `stream` so far."""
        with self._current():
            self._call("cuEventRecord", event, stream)

    def hold(self, stream: int, event: Any) -> None:
        """Let what follows on `stream` wait for `event`, on the device."""
        with self._current():
            self._call("cuStreamWaitEvent", stream, event, 0)

    def done(self, event: Any) -> bool:
        """Whether `event` has been reached."""
        with self._current():
            (status,) = self._cuda.cuEventQuery(event)
        if status == self._cuda.CUresult.CUDA_ERROR_NOT_READY:
            return False
        self._check("cuEventQuery", status)
        return True

    def reach(self, event: Any) -> None:
        """Wait, here, for `event`."""
        with self._current():
            self._call("cuEventSynchronize", event)

    def seconds(self, start: Any, end: Any) -> float:
        """Between two events that have been reached."""
        with self._current():
            return float(self._call("cuEventElapsedTime", start, end)) / 1000

    def end_event(self, event: Any) -> None:
        """Give an event back."""
        with self._current():
            self._call("cuEventDestroy", event)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """uint8 [nbytes] of host memory that the device copies from without help; give it back with `unpin`."""
        with self._current():
            address = int(self._call("cuMemHostAlloc", nbytes, _PORTABLE))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def unpin(self, memory: NDArray[np.uint8]) -> None:
        """Give pinned memory back."""
        with self._current():
            self._call("cuMemFreeHost", memory.ctypes.data)

    def copy_up(self, to: int, source: NDArray[Any], stream: int) -> None:
        """Copy a C-ordered pinned array to the device, on `stream`."""
        with self._current():
            self._call("cuMemcpyHtoDAsync", to, source.ctypes.data, source.nbytes, stream)

    def copy_down(self, to: NDArray[Any], source: int, stream: int) -> None:
        """Copy from the device into a C-ordered pinned array, on `stream`."""
        with self._current():
            self._call("cuMemcpyDtoHAsync", to.ctypes.data, source, to.nbytes, stream)

    def copy_across(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Copy on the device, on `stream`."""
        with self._current():
            self._call("cuMemcpyDtoDAsync", to, source, nbytes, stream)

    def zero(self, address: int, nbytes: int, stream: int) -> None:
        """Fill with zeros, on `stream`."""
        with self._current():
            self._call("cuMemsetD8Async", address, 0, nbytes, stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> Any:
        """What `enqueue` puts on `stream`, as a graph to replay; nothing runs yet."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with self._current():
            self._call("cuStreamBeginCapture", stream, mode)
            try:
                enqueue()
            finally:
                # A capture that failed must end too, or the stream is of no use.
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

    def end_graph(self, graph: Any) -> None:
        """Give a graph back."""
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
                f"the CUDA device answers {status.name} to {function}; run again, and if it stays use --provider cpu"
            )

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            return super()._call(function, *arguments)
        except ProviderError as error:
            raise ResourceError(str(error)) from error
