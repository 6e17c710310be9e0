"""What the machine of `make gpu-check` has: device, driver, compilers, profilers. Fails without a device."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def find_program(name: str) -> str | None:
    """A program on the path, of the CUDA toolkit, or of a Nsight Compute beside it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    folders = [Path(home, "bin"), *sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))


def describe() -> dict[str, Any]:
    """What is here; "driver opened by" and "torch sees" only where there is a device."""
    device: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "programs": {name: find_program(name) for name in ("nvcc", "g++", "ncu", "compute-sanitizer")},
    }
    if find_spec("torch") is not None:
        device |= _by_torch()
    try:
        device |= _by_our_driver()
    except (AttributeError, ImportError, OSError, RuntimeError, ValueError) as error:
        device["driver"] = f"not opened: {type(error).__name__}: {error}"
    return device


def _by_torch() -> dict[str, Any]:
    try:
        import torch

        seen = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    except (ImportError, OSError, RuntimeError) as error:  # such as a library that is missing
        return {"torch": f"{type(error).__name__}: {error}"}
    return {
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda,
        **({"torch sees": seen} if seen else {}),
    }


def _by_our_driver() -> dict[str, Any]:
    from mclst.kernels.cuda import cubin
    from mclst.kernels.cuda.devices import open_driver

    driver = open_driver()
    driver.load()
    nvrtc = cubin.find_nvrtc()
    return {
        "driver opened by": driver.name,
        "name": driver.device,
        "CUDA of the driver": driver.version,
        "compute capability": driver.architecture,
        "multiprocessors": driver.multiprocessors,
        "free bytes": driver.free_bytes(),
        "kernels compiled by": f"NVRTC {cubin.nvrtc_version(nvrtc)}" if nvrtc else "nvcc",
    }


if __name__ == "__main__":
    described = describe()
    print(json.dumps(described, indent=1))
    there = "torch sees" in described or "driver opened by" in described
    sys.exit(0 if there else described["driver"])
