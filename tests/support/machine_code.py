"""Registers, spills and instructions of every kernel, recorded in kernels/cuda/src/machine_code.json.

`python tests/support/machine_code.py` writes the table anew, by the compiler that is installed.
Compiler logs and machine code are kept in build/cubins, once per sources, compiler and architecture.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mclst.kernels.cuda import cubin

TABLE = Path(cubin.__file__).parent / "src" / "machine_code.json"
BUILT = Path(__file__).resolve().parents[2] / "build" / "cubins"
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
# Tensor cores, float32 and float64, global and shared memory, barriers.
COUNTED = (
    "HMMA", "FADD", "FMUL", "FFMA", "DADD", "DMUL", "DFMA", "F2F", "MUFU",
    "LDG", "STG", "ATOMG", "RED", "LDGSTS", "LDS", "LDSM", "STS", "ATOMS", "SHFL", "BAR",
)  # fmt: skip
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_FUNCTION = re.compile(r"Function : (\w+)")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)")
Kernels = dict[str, dict[str, int]]
Table = dict[str, Kernels]


def by_nvcc(nvcc: str) -> tuple[str, Table]:
    """Compiler version, and its table by architecture and kernel."""
    compiler = f"nvcc {cubin.nvcc_version(nvcc)}"
    return compiler, _table(compiler, lambda a: cubin.compile_by_nvcc(nvcc, a))


def by_nvrtc(nvrtc: Any) -> tuple[str, Table]:
    """The same by NVRTC, in half the time."""
    compiler = f"nvrtc {cubin.nvrtc_version(nvrtc)}"
    return compiler, _table(compiler, lambda a: cubin.compile_by_nvrtc(nvrtc, a))


def _table(compiler: str, compile_one: Callable[[int], tuple[bytes, str]]) -> Table:
    content = repr((cubin.sources(), cubin._OPTIONS, compiler)).encode()
    key = hashlib.sha256(content).hexdigest()[:32]
    BUILT.mkdir(parents=True, exist_ok=True)

    def kernels(architecture: int) -> Kernels:
        log, code = (BUILT / f"{key}-sm_{architecture}.{end}" for end in ("txt", "cubin"))
        if not log.is_file():
            machine_code, text = compile_one(architecture)
            for path, content in ((code, machine_code), (log, text.encode())):
                part = path.with_suffix(f".{os.getpid()}")
                part.write_bytes(content)
                part.replace(path)
        read = read_log(log.read_text())
        disassembler = find_disassembler()
        if disassembler is not None:
            for kernel, counts in count_instructions(disassembler, code).items():
                read[kernel] |= counts
        return read

    with ThreadPoolExecutor(2) as pool:
        return {
            f"sm_{a}": table for a, table in zip(ARCHITECTURES, pool.map(kernels, ARCHITECTURES), strict=True)
        }


def read_log(log: str) -> Kernels:
    """Registers and bytes of stack, spills and shared memory of each kernel, from the log of ptxas."""
    kernels: Kernels = {}
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


def find_disassembler() -> str | None:
    """The cuobjdump of the CUDA toolkit, or the one that Triton brings."""
    if path := shutil.which("cuobjdump"):
        return path
    triton = find_spec("triton")
    for folder in (triton and triton.submodule_search_locations) or ():
        path = shutil.which("cuobjdump", path=str(Path(folder, "backends", "nvidia", "bin")))
        if path:
            return path
    return None


def count_instructions(disassembler: str, code: Path) -> Kernels:
    """Instructions of each kind in the machine code of each kernel, and all of them as `instructions`."""
    output = subprocess.run(
        [disassembler, "-sass", str(code)], capture_output=True, text=True, check=True
    ).stdout
    counts: dict[str, Counter[str]] = {}
    kernel = ""
    for line in output.splitlines():
        if function := _FUNCTION.search(line):
            kernel = function[1]
            counts[kernel] = Counter()
        elif instruction := _INSTRUCTION.search(line):
            counts[kernel][instruction[1]] += 1
    return {
        kernel: {"instructions": seen.total() - seen["NOP"]}
        | {name: seen[name] for name in COUNTED if seen[name]}
        for kernel, seen in counts.items()
    }


def without_counts(table: Table) -> Table:
    """The part that needs no disassembler."""
    kept = ("stack", "spills", "registers", "shared")
    return {
        target: {kernel: {name: row[name] for name in kept} for kernel, row in kernels.items()}
        for target, kernels in table.items()
    }


def compiled() -> tuple[str, Table] | None:
    """Compile by NVRTC, else by nvcc; None if neither is installed."""
    if nvrtc := cubin.find_nvrtc():
        return by_nvrtc(nvrtc)
    nvcc = cubin.find_nvcc()
    return by_nvcc(nvcc) if nvcc else None


def write(compiler: str, table: Table) -> None:
    """Write the table, a line for each kernel."""
    targets = []
    for target, kernels in table.items():
        rows = ",\n".join(f'   "{kernel}": {json.dumps(row)}' for kernel, row in sorted(kernels.items()))
        targets.append(f'  "{target}": {{\n{rows}\n  }}')
    TABLE.write_text(f'{{\n "{compiler}": {{\n' + ",\n".join(targets) + "\n }\n}\n")


if __name__ == "__main__":
    if now := compiled():
        write(*now)
