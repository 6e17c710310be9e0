"""The kernels' PTX by NVRTC or nvcc, and libraries that execute it, cached in build/ptx by content."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from host_driver import FORWARD, ROOT, HostDriver, compiler

from mclst.kernels.cuda import cubin
from ptx.parsing import Kernel, basic_blocks, read_kernels
from ptx.translation import table_of, to_cpp

_HERE = Path(__file__).parent
_BUILT = ROOT / "build" / "ptx"
_FLAGS = ("-std=c++20", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra")
_UNUSED = ("-Wno-unused-label", "-Wno-unused-variable", "-Wno-unused-but-set-variable")
_COMPARED = "-Wno-bool-operation"


def available() -> bool:
    """Whether there is a compiler of CUDA and one of C++."""
    return compiler() is not None and (cubin.find_nvrtc() is not None or cubin.find_nvcc() is not None)


@cache
def ptx_of(architecture: int) -> str:
    """PTX of the kernels for compute capability `architecture` (90 for 9.0)."""
    nvrtc, nvcc = cubin.find_nvrtc(), cubin.find_nvcc()
    version = f"nvrtc {cubin.nvrtc_version(nvrtc)}" if nvrtc else f"nvcc {cubin.nvcc_version(nvcc or '')}"
    path = _BUILT / f"{_key(repr((cubin.sources(), version)))}-compute_{architecture}.ptx"
    if not path.is_file():
        text = _by_nvrtc(nvrtc, architecture) if nvrtc else _by_nvcc(nvcc or "", architecture)
        _store(path, lambda part: part.write_text(text))
    return path.read_text()


@cache
def library_of(ptx: str) -> Path:
    """A shared library that executes a PTX module. Equal kernels of several modules are compiled once."""
    kernels = read_kernels(ptx)
    sources: list[tuple[str, ...]] = [(to_cpp(kernel), "-O1", *_UNUSED, _COMPARED) for kernel in kernels]
    sources.append((table_of(kernels), "-O0"))
    with ThreadPoolExecutor(2) as pool:
        objects = [_machine(), *pool.map(lambda source: _object(*source), sources)]
    path = _BUILT / f"{_key(repr([part.name for part in objects]))}.so"
    if not path.is_file():
        _store(path, lambda part: _run_gxx("-shared", "-o", str(part), *map(str, objects)))
    return path


class PtxDriver(HostDriver):
    """A `Driver` that executes PTX. watched: whether to look for races."""

    def __init__(self, ptx: str, order: int = FORWARD, *, watched: bool = False) -> None:
        super().__init__(library_of(ptx), order)
        self._ptx = ptx
        self.calls.ptx_conflicts.restype = ctypes.c_char_p
        self.calls.ptx_watch(int(watched))

    def conflicts(self) -> list[str]:
        """Races since the driver was made."""
        return list(self.calls.ptx_conflicts().decode().splitlines())

    def executed(self) -> dict[str, Counter[str]]:
        """Instructions that warps issued, by kernel and opcode, since the library was loaded.

        Lanes that part for a while are taken to meet again at once: a warp issues a basic block as often as
        the lane that visits it most.
        """
        return {kernel.name: self._executed(kernel) for kernel in read_kernels(self._ptx)}

    def _executed(self, kernel: Kernel) -> Counter[str]:
        blocks = basic_blocks(kernel)
        threads, warps = ((ctypes.c_uint64 * len(blocks))() for _ in range(2))
        self.calls.ptx_visits(kernel.name.encode(), threads, warps)
        issued: Counter[str] = Counter()
        for block, visits in zip(blocks, warps, strict=True):
            for instruction in block:
                issued[".".join(instruction.opcode)] += visits
        return issued


def _machine() -> Path:
    sources = [_HERE / name for name in ("machine.cpp", "race_shadow.h", "ptx.h")]
    emulation = _HERE.parent / "host_cuda" / "host_cuda.h"
    text = "".join(path.read_text() for path in (*sources, emulation))
    path = _BUILT / f"machine-{_key(text)}.o"
    if not path.is_file():
        _store(path, lambda part: _run_gxx(*_FLAGS, "-O2", "-c", "-o", str(part), str(sources[0])))
    return path


def _object(source: str, *flags: str) -> Path:
    header = (_HERE / "ptx.h").read_text()
    path = _BUILT / f"{_key(source + header + repr(flags))}.o"
    if not path.is_file():
        text = path.with_suffix(f".{os.getpid()}.cpp")
        _BUILT.mkdir(parents=True, exist_ok=True)
        text.write_text(source)
        include = f"-I{_HERE}"
        _store(path, lambda part: _run_gxx(*_FLAGS, *flags, include, "-c", "-o", str(part), str(text)))
        text.unlink()
    return path


def _key(text: str) -> str:
    return hashlib.sha256(repr((text, _FLAGS)).encode()).hexdigest()[:20]


def _store(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all; other processes may build the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}{path.suffix}")
    write(part)
    part.replace(path)


def _run_gxx(*arguments: str) -> None:
    gxx = compiler()
    assert gxx is not None
    done = subprocess.run([gxx, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr[:4000]


def _by_nvrtc(nvrtc: Any, architecture: int) -> str:
    (main, text), *headers = cubin.sources().items()
    names, bodies = [name.encode() for name, _ in headers], [body.encode() for _, body in headers]
    program = nvrtc.nvrtcCreateProgram(text.encode(), main.encode(), len(headers), bodies, names)[1]
    options = [f"--gpu-architecture=compute_{architecture}".encode(), b"-std=c++17"]
    status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
    assert int(status) == 0, status
    ptx = b" " * nvrtc.nvrtcGetPTXSize(program)[1]
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    return ptx.decode().rstrip("\0")


def _by_nvcc(nvcc: str, architecture: int) -> str:
    path = _BUILT / f"nvcc-{os.getpid()}-{architecture}.ptx"
    path.parent.mkdir(parents=True, exist_ok=True)
    main = Path(cubin.__file__).parent / "src" / "retrieve.cu"
    command = [nvcc, "-ptx", f"-arch=compute_{architecture}", "-std=c++17", "-o", str(path), str(main)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        return path.read_text()
    finally:
        path.unlink()
