"""The CUDA device of retrieval: what it is asked for, its memory, and its errors."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.cubin import cubin
from mclst.kernels.definition.contract import ProviderError

Grid = tuple[int, int]
Stream = Any
Event = Any
SPARE_CORES = 8
"""With no more cores than these, a wait must not spin."""


class Driver(Protocol):
    """The device operations of retrieval. Addresses are integers.

    name: of the binding. device: of the device. version: of CUDA in NVIDIA's driver, 13000 for 13.0.
    """

    name: str
    device: str
    version: int
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
        """Copy a C-ordered array to the device, and wait until it is there."""

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy from the device into a C-ordered array, after all previous launches, and wait for it."""

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory, uint8 [nbytes]; free it with `free_pinned`."""

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        """Free pinned memory."""

    def copy_to_device(self, to: int, source: NDArray[Any], stream: Stream) -> None:
        """Begin to copy a C-ordered pinned array to the device, on `stream`."""

    def copy_to_host(self, to: NDArray[Any], source: int, stream: Stream) -> None:
        """Begin to copy from the device into a C-ordered pinned array, on `stream`."""

    def launch(
        self, kernel: str, grid: Grid, block: int, shared: int, argument: ctypes.Structure, stream: Stream
    ) -> None:
        """Begin a kernel that takes one structure, on `stream`."""

    def create_stream(self, *, blocking: bool = False) -> Stream:
        """Create a stream.

        blocking: its work comes after all earlier work of the default stream, where `upload` is, and before
        all later work there.
        """

    def destroy_stream(self, stream: Stream) -> None:
        """Destroy a stream that has no work."""

    def handle(self, stream: Stream) -> int:
        """The stream as other libraries name it."""

    def create_event(self) -> Event:
        """Create an event with timing; waiting for it does not spin where cores are few."""

    def destroy_event(self, event: Event) -> None:
        """Destroy an event."""

    def record(self, event: Event, stream: Stream) -> None:
        """Record all work of `stream` so far in `event`."""

    def stream_wait(self, stream: Stream, event: Event) -> None:
        """Make later work of `stream` wait for `event`, on the device."""

    def synchronize(self, event: Event) -> None:
        """Block until `event` is done."""

    def elapsed(self, start: Event, end: Event) -> float:
        """Seconds between two events that are done."""

    def wait(self, stream: int) -> None:
        """Wait for the work of an external stream, or of all streams for UNKNOWN_STREAM."""


def few_cores() -> bool:
    """Whether a wait must not spin, since the core belongs to a decoder."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores <= SPARE_CORES


def load_cubin(architecture: int, load: Callable[[bytes], Any]) -> Any:
    """Load the kernels; where a cached file is damaged, compile once more."""
    try:
        return load(cubin(architecture))
    except ProviderError:
        return load(cubin(architecture, cached=False))


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


def full(nbytes: int) -> ProviderError:
    """The error of a device, or of page-locked memory, that has no room for `nbytes` more."""
    return ProviderError(
        f"the CUDA device has no room for {nbytes / 2**20:.0f} MiB more; "
        "stop other programs on it, give a smaller workspace, or choose provider 'auto'"
    )


def failed(operation: str, status: str) -> ProviderError:
    """The error of an operation that the driver answered with `status`."""
    return ProviderError(
        f"the CUDA device answers {status} to {operation}; "
        "run again, and if it persists choose another provider"
    )
