"""What a measurement was taken on: processor, memory, system, and the version of everything that took part."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mclst.benchmarks.harness.measure import load_average
from mclst.kernels.cpu import compiled

_LIBRARIES = (
    "mclst", "numpy", "scipy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "faiss-cpu", "faiss-gpu", "torch",
    "pillow",    "cuvs", "pycuda", "cuda-core",
)  # fmt: skip
_LANES = ("plain", "AVX2", "AVX-512", "AVX-512 VNNI", "AMX")


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Everything as a JSON object; what the system does not tell is None."""
    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "lanes": _LANES[compiled.library().mclst_best_lanes()] if compiled.built() else None,
        "memory_mib": _memory_mib(),
        "gpu": _gpu_name(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _LIBRARIES if (found := _version(name))},
        "commit": _commit(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_at_start": load_average(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (AttributeError, ValueError, OSError):
        return None


def _gpu_name() -> str | None:
    return _said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")


def _commit() -> str | None:
    return _said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD")


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
