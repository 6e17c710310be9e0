"""CUDA device of the encoder: that of retrieval, with copies on the device and graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mclst.kernels.cuda.cuda_bindings import CudaBindings
from mclst.kernels.cuda.driver import NoDevice
from mclst.kernels.definition.contract import ProviderError
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.errors import ResourceError

DRIVER_VERSION = Path("/sys/module/nvidia/version")


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
        self.gpu = Gpu(
            name=self.device,
            compute_capability=f"{self.architecture // 10}.{self.architecture % 10}",
            driver=self._driver_version(),
        )

    def current(self) -> AbstractContextManager[None]:
        """Make the device's context current in this thread, for libraries that use the current context."""
        return self._current()

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
            return f"CUDA {self.version}"

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
