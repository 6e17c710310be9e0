"""The CUDA device, by PyCUDA or by cuda-bindings.

Both use the device's primary context, shared with torch, ONNX Runtime and TensorRT in the process, and its
default stream. Neither is imported before a device is opened.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.cubin import cubin
from mclst.kernels.cuda.device_array import UNKNOWN_STREAM
from mclst.kernels.definition.contract import ProviderError

Grid = tuple[int, int]


class Driver(Protocol):
    """The device operations of retrieval. Addresses are integers."""

    name: str
    architecture: int
    multiprocessors: int

    def load(self) -> None:
        """Load the kernels, compiling them if they are not cached; later calls do nothing."""

    def free_bytes(self) -> int:
        """Free device memory."""

    def allocate(self, nbytes: int) -> int:
        """Address of `nbytes` of device memory. Raises ProviderError if there is not enough."""

    def free(self, address: int) -> None:
        """Free memory."""

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a C-ordered array to the device."""

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy from the device into a C-ordered array, after all previous launches."""

    def launch(self, kernel: str, grid: Grid, block: int, shared: int, argument: ctypes.Structure) -> None:
        """Run a kernel that takes one structure, after all previous launches."""

    def wait(self, stream: int) -> None:
        """Wait for the work of an external stream, or of all streams for UNKNOWN_STREAM."""


def open_driver(device: int = 0) -> Driver:
    """Open device number `device`, by PyCUDA if it can be imported, else by cuda-bindings.

    Raises ProviderError if neither is installed or there is no such device.
    """
    if find_spec("pycuda") is not None:
        try:
            import_module("pycuda.driver")
        except ImportError as error:  # such as built for another CUDA
            logging.getLogger("mclst").warning("PyCUDA cannot be imported (%s); trying cuda-bindings", error)
        else:
            return PyCuda(device)
    try:
        spec = find_spec("cuda.bindings.driver")
    except ModuleNotFoundError:
        spec = None
    if spec is not None:
        return CudaBindings(device)
    raise ProviderError(
        "retrieval with provider 'cuda' needs PyCUDA or cuda-bindings, and neither can be imported; "
        "install mclst[gpu]"
    )


def load_cubin(architecture: int, load: Callable[[bytes], Any]) -> Any:
    """Load the kernels; where a cached file is damaged, compile once more."""
    try:
        return load(cubin(architecture))
    except ProviderError:
        return load(cubin(architecture, cached=False))


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
            status, free, _ = self._cuda.cuMemGetInfo()
            self._check("cuMemGetInfo", status)
        return int(free)

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

    def download(self, array: NDArray[Any], address: int) -> None:
        """See `Driver`."""
        with self._current():
            self._call("cuMemcpyDtoH", array.ctypes.data, address, array.nbytes)

    def launch(self, kernel: str, grid: Grid, block: int, shared: int, argument: ctypes.Structure) -> None:
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
                0,
                ctypes.addressof(pointers),
                0,
            )

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
        status, *values = getattr(self._cuda, function)(*arguments)
        if int(status) != 0:
            if status == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                raise _full(arguments[0] if function == "cuMemAlloc" else 0)
            self._check(function, status)
        return values[0] if values else None

    def _check(self, function: str, status: Any) -> None:
        if int(status) != 0:
            raise _failed(function, status.name)


class PyCuda:
    """A device by PyCUDA."""

    def __init__(self, device: int) -> None:
        import pycuda.driver as cuda

        try:
            cuda.init()
        except cuda.Error as error:
            raise NoDevice(f"its driver answers {error}") from error
        self._cuda = cuda
        self.name = "PyCUDA"
        if not 0 <= device < cuda.Device.count():
            raise NoDevice(f"it has {cuda.Device.count()}")
        opened = cuda.Device(device)
        self._context = opened.retain_primary_context()
        major, minor = opened.compute_capability()
        self.architecture = 10 * major + minor
        self.multiprocessors = opened.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT)
        self._module: Any = None
        self._kernels: dict[str, Any] = {}
        self._owned: dict[int, Any] = {}

    def load(self) -> None:
        """See `Driver`."""
        if self._module is None:
            self._module = load_cubin(self.architecture, self._load)

    def _load(self, code: bytes) -> Any:
        with self._current("load"):
            return self._cuda.module_from_buffer(code)

    def free_bytes(self) -> int:
        """See `Driver`."""
        with self._current("mem_get_info"):
            return int(self._cuda.mem_get_info()[0])

    def allocate(self, nbytes: int) -> int:
        """See `Driver`."""
        with self._current("mem_alloc", nbytes):
            memory = self._cuda.mem_alloc(nbytes)
        self._owned[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """See `Driver`."""
        with self._current("free"):
            self._owned.pop(address).free()

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """See `Driver`."""
        with self._current("memcpy_htod"):
            self._cuda.memcpy_htod(address, array)

    def download(self, array: NDArray[Any], address: int) -> None:
        """See `Driver`."""
        with self._current("memcpy_dtoh"):
            self._cuda.memcpy_dtoh(array, address)

    def launch(self, kernel: str, grid: Grid, block: int, shared: int, argument: ctypes.Structure) -> None:
        """See `Driver`."""
        with self._current(kernel):
            if kernel not in self._kernels:
                function = self._module.get_function(kernel)
                self._kernels[kernel] = function.prepare([f"{ctypes.sizeof(argument)}s"])
            self._kernels[kernel].prepared_async_call(
                (*grid, 1), (block, 1, 1), None, bytes(argument), shared_size=shared
            )

    def wait(self, stream: int) -> None:
        """See `Driver`. PyCUDA cannot wrap a foreign stream, so this always waits for all streams."""
        with self._current("synchronize"):
            self._cuda.Context.synchronize()

    @contextmanager
    def _current(self, operation: str, nbytes: int = 0) -> Iterator[None]:
        self._context.push()
        try:
            yield
        except self._cuda.MemoryError as error:
            raise _full(nbytes) from error
        except self._cuda.Error as error:
            raise _failed(operation, str(error).strip().splitlines()[0]) from error
        finally:
            self._cuda.Context.pop()


class Memory:
    """Named arrays on a device, freed together. `memory[name]` is the address, 0 for an unknown name."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._address: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        return self._address.get(name, 0)

    def reserve(self, name: str, nbytes: int) -> None:
        """Allocate `nbytes`, at least one."""
        self._address[name] = self._driver.allocate(max(1, nbytes))

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Allocate and upload a copy of `array`."""
        array = np.ascontiguousarray(array)
        self.reserve(name, array.nbytes)
        if array.nbytes:
            self._driver.upload(self._address[name], array)

    def release(self) -> None:
        """Free everything."""
        while self._address:
            self._driver.free(self._address.popitem()[1])


class NoDevice(ProviderError):
    """There is no such CUDA device. why: the driver's reason."""

    def __init__(self, why: str) -> None:
        self.why = why.strip().splitlines()[0]
        super().__init__(
            f"retrieval with provider 'cuda' finds no such CUDA device on this machine ({self.why}); "
            "choose provider 'auto', or install the NVIDIA driver"
        )


def _full(nbytes: int) -> ProviderError:
    return ProviderError(
        f"the CUDA device has no room for {nbytes / 2**20:.0f} MiB more; "
        "stop other programs on it, give a smaller workspace, or choose provider 'auto'"
    )


def _failed(operation: str, status: str) -> ProviderError:
    return ProviderError(
        f"the CUDA device answers {status} to {operation}; "
        "run again, and if it persists choose another provider"
    )
