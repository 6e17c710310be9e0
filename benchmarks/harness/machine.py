"""The machine a measurement was taken on, its load, and the head of a result document."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from mclst.runtime.resources import available_cores

_LIBRARIES = (
    "mclst", "numpy", "scipy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "faiss-cpu",
    "faiss-gpu", "torch", "pillow", "cuvs", "pycuda", "cuda-core",
)  # fmt: skip
_LANES = ("plain", "AVX2", "AVX-512", "AVX-512 VNNI", "AMX")
_QUIET_LOAD = 0.5
"""Load average per core up to which a machine counts as quiet."""


class MeasuredBundle(Protocol):
    """A bundle, in a folder or on a server."""

    @property
    def sha256(self) -> str:
        """Hash of its manifest."""

    @property
    def manifest(self) -> Any:
        """Its manifest."""


def describe_machine() -> dict[str, Any]:
    """Processor, memory, GPU, system and library versions as a JSON object; unknown values are None."""
    from mclst.kernels.cpu import compiled

    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "lanes": _LANES[compiled.library().mclst_best_lanes()] if compiled.built() else None,
        "memory_mib": _memory_mib(),
        "gpu": _output_of("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": installed_versions(*_LIBRARIES),
        "commit": _output_of("git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_at_start": load_average(),
    }


def new_document(
    schema: str, *, threads: int | None = None, bundle: MeasuredBundle | None = None
) -> dict[str, Any]:
    """Start a result document; call it before the measurement, for the time and the load.

    Parameters
    ----------
    schema : str
        Name and version, such as `mclst-bench-latency/1`.
    threads : int, optional
        Threads of the run, against which the load is judged; by default all cores.
    bundle : Bundle or ServedBundle, optional
        The bundle that is measured.
    """
    machine = describe_machine()
    document: dict[str, Any] = {
        "schema": schema,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "verdict": load_verdict(machine["load_at_start"], threads or machine["cores"]),
    }
    if bundle is not None:
        manifest = bundle.manifest
        document["bundle"] = {
            "sha256": bundle.sha256,
            "system": manifest.system,
            "encoder": manifest.encoder.name,
            "tile_px": manifest.tile.size_px,
        }
    return document


def load_average() -> float | None:
    """Load average of the last minute; None where the system has none."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def load_verdict(load: float | None, cores: int) -> str:
    """`quiet` or `busy`, by the load average at the start of a run."""
    return "quiet" if load is not None and load <= _QUIET_LOAD * cores else "busy"


def installed_versions(*names: str) -> dict[str, str]:
    """Versions of the installed packages among `names`."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


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


def _output_of(*command: str) -> str | None:
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip() or None
