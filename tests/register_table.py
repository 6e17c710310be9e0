"""What every kernel takes on every architecture: compiled here, compared with kernels/registers.json by the tests.

python tests/register_table.py writes the table anew, with the compiler at hand.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mclst.kernels import cubin

TABLE = Path(cubin.__file__).with_name("registers.json")
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def by_nvcc(nvcc: str) -> dict[str, Any]:
    """The table by nvcc, two architectures at a time."""
    with ThreadPoolExecutor(2) as pool:
        logs = pool.map(lambda architecture: cubin.compile_by_nvcc(nvcc, architecture)[1], ARCHITECTURES)
        return _table(f"nvcc {cubin.nvcc_version(nvcc)}", list(logs))


def by_nvrtc(nvrtc: Any) -> dict[str, Any]:
    """The table by NVRTC."""
    logs = [cubin.compile_by_nvrtc(nvrtc, architecture)[1] for architecture in ARCHITECTURES]
    return _table(f"nvrtc {cubin.nvrtc_version(nvrtc)}", logs)


def _table(compiler: str, logs: list[str]) -> dict[str, Any]:
    architectures = {f"sm_{a}": read_log(log) for a, log in zip(ARCHITECTURES, logs, strict=True)}
    return {"compiler": compiler, "architectures": architectures}


def read_log(log: str) -> dict[str, dict[str, int]]:
    """Registers, bytes of stack, of spills and of shared memory of each kernel, from what ptxas says of it."""
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


def compiled() -> dict[str, Any] | None:
    """The table by the compiler at hand; None where there is none."""
    if nvcc := cubin.find_nvcc():
        return by_nvcc(nvcc)
    return by_nvrtc(nvrtc) if (nvrtc := cubin.find_nvrtc()) else None


if __name__ == "__main__":
    table = compiled()
    assert table is not None, "install nvcc or cuda-bindings with NVRTC"
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
