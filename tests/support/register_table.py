"""Registers and spills of every kernel on every architecture, recorded in kernels/cuda/src/registers.json.

`python tests/support/register_table.py` writes the table anew, with every compiler that is installed.
Compiler logs are kept in build/cubin_logs, once per sources, compiler and architecture.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mclst.kernels.cuda import cubin

TABLE = Path(cubin.__file__).parent / "src" / "registers.json"
LOGS = Path(__file__).resolve().parents[2] / "build" / "cubin_logs"
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
Table = dict[str, dict[str, dict[str, int]]]


def by_nvcc(nvcc: str) -> tuple[str, Table]:
    """Compiler version, and its table by architecture and kernel."""
    compiler = f"nvcc {cubin.nvcc_version(nvcc)}"
    return compiler, _table(_each(compiler, lambda a: cubin.compile_by_nvcc(nvcc, a)[1]))


def by_nvrtc(nvrtc: Any) -> tuple[str, Table]:
    """The same by NVRTC, in half the time."""
    compiler = f"nvrtc {cubin.nvrtc_version(nvrtc)}"
    return compiler, _table(_each(compiler, lambda a: cubin.compile_by_nvrtc(nvrtc, a)[1]))


def _each(compiler: str, compile_one: Callable[[int], str]) -> list[str]:
    content = repr((cubin.sources(), cubin._OPTIONS, compiler)).encode()
    key = hashlib.sha256(content).hexdigest()[:32]
    LOGS.mkdir(parents=True, exist_ok=True)

    def log(architecture: int) -> str:
        path = LOGS / f"{key}-sm_{architecture}.txt"
        if not path.is_file():
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(compile_one(architecture))
            part.replace(path)
        return path.read_text()

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(log, ARCHITECTURES))


def _table(logs: list[str]) -> Table:
    return {f"sm_{a}": read_log(log) for a, log in zip(ARCHITECTURES, logs, strict=True)}


def read_log(log: str) -> dict[str, dict[str, int]]:
    """Registers and bytes of stack, spills and shared memory of each kernel, from the log of ptxas."""
    kernels: dict[str, dict[str, int]] = {}
    kernel = ""
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            kernel = entry[1]
            kernels[kernel] = {"stack": 0, "spills": 0}
        elif stack := _STACK.search(line):
            kernels[kernel]["stack"] = int(stack[1])
            kernels[kernel]["spills"] = int(stack[2]) + int(stack[3])
        elif used := _USED.search(line):
            kernels[kernel]["registers"] = int(used[1])
            shared = _SHARED.search(line)
            kernels[kernel]["shared"] = int(shared[1]) if shared else 0
    return kernels


def compiled() -> tuple[str, Table] | None:
    """Compile by NVRTC, else by nvcc; None if neither is installed."""
    if nvrtc := cubin.find_nvrtc():
        return by_nvrtc(nvrtc)
    nvcc = cubin.find_nvcc()
    return by_nvcc(nvcc) if nvcc else None


if __name__ == "__main__":
    nvrtc, nvcc = cubin.find_nvrtc(), cubin.find_nvcc()
    tables = [by_nvrtc(nvrtc)] if nvrtc else []
    tables += [by_nvcc(nvcc)] if nvcc else []
    TABLE.write_text(json.dumps(dict(tables), indent=1) + "\n")
