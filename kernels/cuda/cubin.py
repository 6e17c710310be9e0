"""Compile the kernels, by NVRTC if cuda-bindings is installed, else by nvcc; cached on disk.

File names in the user's cache hash the sources, options and compiler version, so a cached file is always
current. A file that other users may have written is not used, as it is code.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from mclst.kernels.definition.contract import ProviderError
from mclst.kernels.definition.user_cache import cache_folder, read_own, store_own

_MAIN = Path(__file__).parent / "src" / "retrieve.cu"
_OPTIONS = ("-std=c++17",)


@cache
def sources() -> dict[str, str]:
    """The kernel sources by file name, retrieve.cu first."""
    headers = sorted(_MAIN.parent.glob("*.cuh"))
    return {path.name: path.read_text() for path in (_MAIN, *headers)}


def cubin(architecture: int, *, cached: bool = True) -> bytes:
    """Machine code of all kernels for compute capability `architecture` (90 for 9.0), cached or compiled now.

    cached: whether a file of the cache will do; otherwise it is replaced.
    Raises ProviderError if there is no compiler or compilation fails.
    """
    nvrtc = find_nvrtc()
    compiler = f"nvrtc {nvrtc_version(nvrtc)}" if nvrtc else f"nvcc {nvcc_version(_nvcc())}"
    name = hashlib.sha256(repr((sources(), _OPTIONS, compiler)).encode()).hexdigest()[:32]
    path = cache_folder() / f"{name}-sm_{architecture}.cubin"
    if cached and (stored := read_own(path)) is not None:
        return stored
    code = compile_by_nvrtc(nvrtc, architecture)[0] if nvrtc else compile_by_nvcc(_nvcc(), architecture)[0]
    store_own(path, code)
    return code


def compile_by_nvrtc(nvrtc: Any, architecture: int) -> tuple[bytes, str]:
    """Machine code and compiler log, by NVRTC, in this process and without a device."""
    (main, text), *headers = sources().items()
    _, program = _checked(
        nvrtc,
        nvrtc.nvrtcCreateProgram(
            text.encode(),
            main.encode(),
            len(headers),
            [body.encode() for _, body in headers],
            [name.encode() for name, _ in headers],
        ),
    )
    options = [f"--gpu-architecture=sm_{architecture}", *_OPTIONS, "--ptxas-options=-v"]
    result = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    _, size = _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
    log = b" " * size
    _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
    messages = log.decode(errors="replace").strip("\0 \n")
    if int(result[0]) != 0:
        raise ProviderError(_failure("NVRTC", architecture, messages))
    _, size = _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
    code = b" " * size
    _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
    _checked(nvrtc, nvrtc.nvrtcDestroyProgram(program))
    return code, messages


def compile_by_nvcc(nvcc: str, architecture: int) -> tuple[bytes, str]:
    """Machine code and compiler log, by nvcc."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "retrieve.cubin")
        options = ["-cubin", f"-arch=sm_{architecture}", *_OPTIONS, "-Xptxas", "-v"]
        command = [nvcc, *options, "-o", str(out), str(_MAIN)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ProviderError(_failure("nvcc", architecture, done.stderr))
        return out.read_bytes(), done.stderr


def find_nvcc() -> str | None:
    """The nvcc on the path, in $CUDA_HOME, or in /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))


@cache
def nvcc_version(nvcc: str) -> str:
    """Release of an nvcc, such as 13.0."""
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"release (\d+\.\d+)", output)
    if match is None:
        raise ProviderError(f"{nvcc} does not report its version; install the CUDA toolkit again")
    return match[1]


def nvrtc_version(nvrtc: Any) -> str:
    """Release of NVRTC, such as 13.0."""
    _, major, minor = _checked(nvrtc, nvrtc.nvrtcVersion())
    return f"{major}.{minor}"


def find_nvrtc() -> Any:
    """The NVRTC module of cuda-bindings; None if it or its library is missing."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError):
        return None
    return nvrtc


def _nvcc() -> str:
    nvcc = find_nvcc()
    if nvcc is None:
        raise ProviderError(
            "retrieval with provider 'cuda' compiles its kernels, and there is no compiler; "
            "install mclst[gpu], or the CUDA toolkit's nvcc"
        )
    return nvcc


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> tuple[Any, ...]:
    if int(result[0]) != 0:
        _, message = nvrtc.nvrtcGetErrorString(result[0])
        raise ProviderError(f"NVRTC fails with {message.decode()}; install mclst[gpu] again")
    return result


def _failure(compiler: str, architecture: int, log: str) -> str:
    lines = log.strip().splitlines() or ["no message"]
    line = next((line for line in lines if "error" in line or "not supported" in line), lines[-1])
    return (
        f"{compiler} cannot compile the kernels for sm_{architecture} ({line.strip()}); "
        "install a CUDA toolkit that supports this device"
    )
