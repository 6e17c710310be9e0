"""The CUDA device by NVIDIA's cuda-bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.device_array import UNKNOWN_STREAM
from mclst.kernels.cuda.driver import (
    Event,
    Grid,
    NoDevice,
    Stream,
    failed,
    few_cores,
    full,
    load_cubin,
)

_NAME_BYTES = 256
_PORTABLE = 1
_NON_BLOCKING = 1
_BLOCKING_SYNC = 1
_DEFAULT_STREAM = 0


class CudaBindings:
    """A device by cuda-bindings."""

    def __init__(self, device: int) -> None:
        try:
            from cuda.bindings import driver

            status = driver.cuInit(0)[0]
        except OSError as error:
            # Searching for libcuda opens files, which fails if the process has too many open.
            raise NoDevice(f"its driver library cannot be looked for: {error}") from error
        except RuntimeError as error:
            # Raised by cuda-bindings if libcuda is missing.
            raise NoDevice("its driver library cannot be loaded") from error
        self._cuda = driver
        self.name = "cuda-bindings"
        if int(status) != 0:
            raise NoDevice(f"its driver answers {status.name}")
        count = int(self._call("cuDeviceGetCount"))
        if not 0 <= device < count:
            raise NoDevice(f"it has {count}")
        self._device = self._call("cuDeviceGet", device)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        name = bytes(self._call("cuDeviceGetName", _NAME_BYTES, self._device))
        self.device = name.split(b"\0")[0].decode()
        self.version = int(self._call("cuDriverGetVersion"))
        attribute = driver.CUdevice_attribute
        self.architecture = 10 * self._attribute(
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        ) + self._attribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        self.multiprocessors = self._attribute(attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        self._module: Any = None
        self._kernels: dict[str, Any] = {}

    def load(self) -> None:
        """See `Driver`."""
        if self._module is None:
            with self._current():
                self._module = load_cubin(
                    self.architecture, lambda code: self._call("cuModuleLoadData", code)
                )

    def free_bytes(self) -> int:
        """See `Driver`."""
        with self._current():
            status, *values = self._cuda.cuMemGetInfo()
            self._check("cuMemGetInfo", status)
        return int(values[0])

    def allocate(self, nbytes: int) -> int:
        """See `Driver`."""
        with self._current():
            return int(self._call("cuMemAlloc", nbytes))

    def free(self, address: int) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuMemFree", address)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuMemcpyHtoD", address, array.ctypes.data, array.nbytes)
            # The call returns when the array may change, not when its bytes are on the device.
            self._call("cuStreamSynchronize", _DEFAULT_STREAM)

    def download(self, array: NDArray[Any], address: int) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuMemcpyDtoH", array.ctypes.data, address, array.nbytes)

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """See `Driver`."""
        with self._current():
            address = int(self._call("cuMemHostAlloc", nbytes, _PORTABLE))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuMemFreeHost", memory.ctypes.data)

    def copy_to_device(self, to: int, source: NDArray[Any], stream: Stream) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuMemcpyHtoDAsync", to, source.ctypes.data, source.nbytes, stream)

    def copy_to_host(self, to: NDArray[Any], source: int, stream: Stream) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuMemcpyDtoHAsync", to.ctypes.data, source, to.nbytes, stream)

    def launch(
        self, kernel: str, grid: Grid, block: int, shared: int, argument: ctypes.Structure, stream: Stream
    ) -> None:
        """See `Driver`."""
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        with self._current():
            if kernel not in self._kernels:
                self._kernels[kernel] = self._call("cuModuleGetFunction", self._module, kernel.encode())
            self._call(
                "cuLaunchKernel",
                self._kernels[kernel],
                *(*grid, 1),
                *(block, 1, 1),
                shared,
                stream,
                ctypes.addressof(pointers),
                0,
            )

    def create_stream(self, *, blocking: bool = False) -> Stream:
        """See `Driver`."""
        with self._current():
            return int(self._call("cuStreamCreate", 0 if blocking else _NON_BLOCKING))

    def destroy_stream(self, stream: Stream) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuStreamDestroy", stream)

    def handle(self, stream: Stream) -> int:
        """See `Driver`."""
        return int(stream)

    def create_event(self) -> Event:
        """See `Driver`."""
        with self._current():
            return self._call("cuEventCreate", _BLOCKING_SYNC if few_cores() else 0)

    def destroy_event(self, event: Event) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuEventDestroy", event)

    def record(self, event: Event, stream: Stream) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuEventRecord", event, stream)

    def stream_wait(self, stream: Stream, event: Event) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuStreamWaitEvent", stream, event, 0)

    def done(self, event: Event) -> bool:
        """Whether the work recorded in `event` is done."""
        with self._current():
            (status,) = self._cuda.cuEventQuery(event)
        if status == self._cuda.CUresult.CUDA_ERROR_NOT_READY:
            return False
        self._check("cuEventQuery", status)
        return True

    def synchronize(self, event: Event) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuEventSynchronize", event)

    def elapsed(self, start: Event, end: Event) -> float:
        """See `Driver`."""
        with self._current():
            return float(self._call("cuEventElapsedTime", start, end)) / 1000

    def wait(self, stream: int) -> None:
        """See `Driver`."""
        with self._current():
            if stream == UNKNOWN_STREAM:
                self._call("cuCtxSynchronize")
            else:
                self._call("cuStreamSynchronize", stream)

    def _attribute(self, attribute: Any) -> int:
        return int(self._call("cuDeviceGetAttribute", attribute, self._device))

    @contextmanager
    def _current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            status, *values = getattr(self._cuda, function)(*arguments)
        except RuntimeError as error:  # of a driver that is older than the binding
            raise failed(function, str(error)) from error
        if int(status) != 0:
            if status == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                raise full(arguments[0] if function in ("cuMemAlloc", "cuMemHostAlloc") else 0)
            self._check(function, status)
        return values[0] if values else None

    def _check(self, function: str, status: Any) -> None:
        if int(status) != 0:
            raise failed(function, status.name)
