"""The kernels compiled for one architecture: by NVRTC where cuda-bindings is installed, else by nvcc; kept by source hash.

A compiled file lies in `$MCLST_CACHE`, else `$XDG_CACHE_HOME/mclst`, else `~/.cache/mclst`, under a name made of the
source, the options, the compiler's version and the architecture: a file of that name is that code.
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

_MAIN = Path(__file__).parent / "src" / "retrieve.cu"
_OPTIONS = ("-std=c++17",)


@cache
def sources() -> dict[str, str]:
    """The kernels' files by name, retrieve.cu first."""
    headers = sorted(_MAIN.parent.glob("*.cuh"))
    return {path.name: path.read_text() for path in (_MAIN, *headers)}


def cubin(architecture: int) -> bytes:
    """Machine code of all kernels for compute capability `architecture` (90 for 9.0), from the cache or compiled.

    Raises ProviderError where there is no compiler, or it refuses.
    """
    nvrtc = find_nvrtc()
    compiler = f"nvrtc {nvrtc_version(nvrtc)}" if nvrtc else f"nvcc {nvcc_version(_nvcc())}"
    name = hashlib.sha256(repr((sources(), _OPTIONS, compiler)).encode()).hexdigest()[:32]
    kept = _folder() / f"{name}-sm_{architecture}.cubin"
    if kept.is_file():
        return kept.read_bytes()
    code = compile_by_nvrtc(nvrtc, architecture)[0] if nvrtc else compile_by_nvcc(_nvcc(), architecture)[0]
    _keep(kept, code)
    return code


def compile_by_nvrtc(nvrtc: Any, architecture: int) -> tuple[bytes, str]:
    """Machine code and the compiler's log, by NVRTC, in this process and without a device."""
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
    said = log.decode(errors="replace").strip("\0 \n")
    if int(result[0]) != 0:
        raise ProviderError(_refusal("NVRTC", architecture, said))
    _, size = _checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
    code = b" " * size
    _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
    _checked(nvrtc, nvrtc.nvrtcDestroyProgram(program))
    return code, said


def compile_by_nvcc(nvcc: str, architecture: int) -> tuple[bytes, str]:
    """Machine code and the compiler's log, by nvcc."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "retrieve.cubin")
        options = ["-cubin", f"-arch=sm_{architecture}", *_OPTIONS, "-Xptxas", "-v"]
        command = [nvcc, *options, "-o", str(out), str(_MAIN)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ProviderError(_refusal("nvcc", architecture, done.stderr))
        return out.read_bytes(), done.stderr


def find_nvcc() -> str | None:
    """The nvcc on the path, in $CUDA_HOME, or in /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))


@cache
def nvcc_version(nvcc: str) -> str:
    """Release of an nvcc, as 13.0."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    if found is None:
        raise ProviderError(f"{nvcc} does not say its version; install the CUDA toolkit again")
    return found[1]


def nvrtc_version(nvrtc: Any) -> str:
    """Release of NVRTC, as 13.0."""
    _, major, minor = _checked(nvrtc, nvrtc.nvrtcVersion())
    return f"{major}.{minor}"


def find_nvrtc() -> Any:
    """cuda-bindings' NVRTC, or None where it or the library is missing."""
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
            "retrieval with provider 'cuda' compiles its kernels, and there is no compiler; install mclst[gpu], "
            "or the CUDA toolkit's nvcc"
        )
    return nvcc


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> tuple[Any, ...]:
    if int(result[0]) != 0:
        _, said = nvrtc.nvrtcGetErrorString(result[0])
        raise ProviderError(f"NVRTC fails with {said.decode()}; install mclst[gpu] again")
    return result


def _refusal(compiler: str, architecture: int, said: str) -> str:
    lines = said.strip().splitlines() or ["no message"]
    line = next((line for line in lines if "error" in line or "not supported" in line), lines[-1])
    return (
        f"{compiler} cannot compile the kernels for sm_{architecture} ({line.strip()}); "
        "install a CUDA toolkit that knows this device"
    )


def _folder() -> Path:
    if chosen := os.environ.get("MCLST_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mclst")


def _keep(path: Path, code: bytes) -> None:
    """Writes `code` whole or not at all; where the folder takes no files it is compiled anew next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(code)
        os.replace(file.name, path)
    except OSError:
        return
