"""Memory of this process: the most it held at once, and whether its limit leaves enough to begin."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from mclst.runtime.errors import ResourceError

LEAST_BYTES = 48 << 20
"""A limit of address space that leaves less cannot hold the stacks of the threads that read and encode; Python hangs
and libraries abort where the first bytes of a thread are refused, so a run does not begin there."""


def peak_bytes() -> int:
    """Resident bytes of this process at their highest so far.

    By the kernel's own mark of it where there is one: `getrusage` of a process that was started by a larger one begins
    with that one's.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10


def check_limit() -> None:
    """Raise ResourceError where a limit of address space (ulimit -v) leaves less than LEAST_BYTES."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    left = limit - pages * resource.getpagesize()
    if limit != resource.RLIM_INFINITY and left < LEAST_BYTES:
        raise ResourceError(
            f"the limit of {limit >> 20} MiB of memory (ulimit -v) leaves {max(left, 0) >> 20} MiB where at least "
            f"{LEAST_BYTES >> 20} are needed to begin; raise it"
        )


def available_cores() -> int:
    """Cores this process may use; macOS does not tell them from all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
