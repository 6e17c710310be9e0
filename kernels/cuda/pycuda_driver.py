"""The CUDA device by PyCUDA."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

_NON_BLOCKING = 1


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
        self.device, self.version = opened.name(), cuda.get_driver_version()
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
            # The call returns when the array may change, not when its bytes are on the device.
            self._cuda.Context.synchronize()

    def download(self, array: NDArray[Any], address: int) -> None:
        """See `Driver`."""
        with self._current("memcpy_dtoh"):
            self._cuda.memcpy_dtoh(array, address)

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """See `Driver`."""
        with self._current("pagelocked_empty", nbytes):
            memory: NDArray[np.uint8] = self._cuda.pagelocked_empty(
                nbytes, np.uint8, mem_flags=self._cuda.host_alloc_flags.PORTABLE
            )
        return memory

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        """See `Driver`."""
        with self._current("free"):
            memory.base.free()  # type: ignore[union-attr]

    def copy_to_device(self, to: int, source: NDArray[Any], stream: Stream) -> None:
        """See `Driver`."""
        with self._current("memcpy_htod_async"):
            self._cuda.memcpy_htod_async(to, source, stream)

    def copy_to_host(self, to: NDArray[Any], source: int, stream: Stream) -> None:
        """See `Driver`."""
        with self._current("memcpy_dtoh_async"):
            self._cuda.memcpy_dtoh_async(to, source, stream)

    def launch(
        self, kernel: str, grid: Grid, block: int, shared: int, argument: ctypes.Structure, stream: Stream
    ) -> None:
        """See `Driver`."""
        with self._current(kernel):
            if kernel not in self._kernels:
                function = self._module.get_function(kernel)
                self._kernels[kernel] = function.prepare([f"{ctypes.sizeof(argument)}s"])
            self._kernels[kernel].prepared_async_call(
                (*grid, 1), (block, 1, 1), stream, bytes(argument), shared_size=shared
            )

    def create_stream(self, *, blocking: bool = False) -> Stream:
        """See `Driver`."""
        with self._current("Stream"):
            return self._cuda.Stream(0 if blocking else _NON_BLOCKING)

    def destroy_stream(self, stream: Stream) -> None:
        """See `Driver`; PyCUDA destroys it with its last reference."""

    def handle(self, stream: Stream) -> int:
        """See `Driver`."""
        return int(stream.handle)

    def create_event(self) -> Event:
        """See `Driver`."""
        with self._current("Event"):
            return self._cuda.Event(self._cuda.event_flags.BLOCKING_SYNC if few_cores() else 0)

    def destroy_event(self, event: Event) -> None:
        """See `Driver`; PyCUDA destroys it with its last reference."""

    def record(self, event: Event, stream: Stream) -> None:
        """See `Driver`."""
        with self._current("record"):
            event.record(stream)

    def stream_wait(self, stream: Stream, event: Event) -> None:
        """See `Driver`."""
        with self._current("wait_for_event"):
            stream.wait_for_event(event)

    def synchronize(self, event: Event) -> None:
        """See `Driver`."""
        with self._current("synchronize"):
            event.synchronize()

    def elapsed(self, start: Event, end: Event) -> float:
        """See `Driver`."""
        with self._current("time_till"):
            return float(start.time_till(end)) / 1000

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
            raise full(nbytes) from error
        except self._cuda.Error as error:
            raise failed(operation, str(error).strip().splitlines()[0]) from error
        finally:
            self._cuda.Context.pop()
