"""The CUDA kernels on the CPU: tests/support/host_cuda compiled by g++, behind the `Driver` interface."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas")
PLAIN = ("-O2",)
SANITIZED = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FORWARD, REVERSE, SHUFFLED = 0, 1, 2


def compiler() -> str | None:
    return shutil.which("g++")


def sanitizer() -> str | None:
    """Path of AddressSanitizer's library, which must be preloaded."""
    gxx = compiler()
    if gxx is None:
        return None
    done = subprocess.run([gxx, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    return path if Path(path).is_file() else None


@cache
def build(flags: tuple[str, ...] = PLAIN, root: Path = ROOT) -> Path:
    """Compile the shared library into build/host_cuda, once per source and flags. root: a repository."""
    gxx = compiler()
    assert gxx is not None
    main = root / "tests" / "support" / "host_cuda" / "host_cuda.cpp"
    sources = [*sorted(main.parent.glob("*.h")), main, *sorted((root / "kernels/cuda/src").glob("*.cu*"))]
    text = b"".join(path.read_bytes() for path in sources)
    name = hashlib.sha256(text + repr((FLAGS, flags)).encode()).hexdigest()[:16]
    out = ROOT / "build" / "host_cuda" / f"{name}.so"
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [gxx, *FLAGS, *flags, "-o", str(part), str(main)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        part.replace(out)
    return out


class HostDriver:
    """A `Driver` that runs kernels on the CPU."""

    name = "host"
    device = "emulation"
    version = 13000
    architecture = 80
    multiprocessors = 3

    def __init__(self, library: Path | None = None, order: int = FORWARD) -> None:
        self.calls = ctypes.CDLL(str(library or build()))
        self.calls.host_cuda_allocate.restype = ctypes.c_void_p
        self.calls.host_cuda_launch.restype = ctypes.c_char_p
        self.calls.host_cuda_size.restype = self.calls.host_cuda_offset.restype = ctypes.c_size_t
        self.order = order
        self.room = 1 << 40
        self.allocated: set[int] = set()
        self.sizes: dict[int, int] = {}
        self.launched: list[str] = []

    def load(self) -> None:
        pass

    def free_bytes(self) -> int:
        return self.room

    def allocate(self, nbytes: int) -> int:
        address = self.calls.host_cuda_allocate(ctypes.c_size_t(nbytes))
        self.allocated.add(address)
        self.sizes[address] = nbytes
        return int(address)

    def free(self, address: int) -> None:
        self.allocated.remove(address)
        self.calls.host_cuda_free(ctypes.c_void_p(address))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        self._copy(address, array.ctypes.data, array.nbytes)

    def download(self, array: NDArray[Any], address: int) -> None:
        assert array.flags.c_contiguous
        self._copy(array.ctypes.data, address, array.nbytes)

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        address = self.allocate(nbytes)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        self.free(memory.ctypes.data)

    def copy_to_device(self, to: int, source: NDArray[Any], stream: int) -> None:
        self.upload(to, source)

    def copy_to_host(self, to: NDArray[Any], source: int, stream: int) -> None:
        self.download(to, source)

    def create_stream(self, *, blocking: bool = False) -> int:
        return 7

    def destroy_stream(self, stream: int) -> None:
        pass

    def handle(self, stream: int) -> int:
        return stream

    def create_event(self) -> float:
        return 0.0

    def destroy_event(self, event: float) -> None:
        pass

    def record(self, event: float, stream: int) -> None:
        pass

    def stream_wait(self, stream: int, event: float) -> None:
        pass

    def synchronize(self, event: float) -> None:
        pass

    def elapsed(self, start: float, end: float) -> float:
        return 0.001

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int],
        block: int,
        shared: int,
        argument: ctypes.Structure,
        stream: int = 7,
    ) -> None:
        assert stream == 7
        self.launched.append(kernel)
        shape = ctypes.c_uint * 3
        failure = self.calls.host_cuda_launch(
            kernel.encode(), shape(*grid, 1), shape(block, 1, 1), shared, ctypes.byref(argument), self.order
        )
        assert failure is None, f"{kernel}: {failure.decode()}"

    def wait(self, stream: int) -> None:
        pass

    def _copy(self, to: int, source: int, nbytes: int) -> None:
        self.calls.host_cuda_copy(ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(nbytes))
