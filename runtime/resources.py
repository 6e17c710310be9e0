"""Memory and cores of this process: peak usage, address-space limit, garbage collection, usable cores."""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mclst.runtime.errors import ResourceError

MIN_FREE_BYTES = 48 << 20
"""Address space for the stacks of all threads; with less, Python hangs and libraries abort."""
THREAD_BYTES = 10 << 20
"""Address space of one more thread: its stack, and what Python starts it with."""
_M_ARENA_MAX = -8  # of glibc's malloc.h


def peak_bytes() -> int:
    """Peak resident bytes of this process so far."""
    # VmHWM before getrusage: the latter starts with the peak of the process that forked this one.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10


def check_limit(needed: int = MIN_FREE_BYTES) -> None:
    """Raise ResourceError if the address-space limit (ulimit -v) leaves less than `needed` bytes.

    Under such a limit all threads allocate from one heap from then on: glibc would reserve 64 MiB for each.
    """
    if not memory_is_limited():
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    free = limit - pages * resource.getpagesize()
    if free < needed:
        raise ResourceError(
            f"the limit of {limit >> 20} MiB of memory (ulimit -v) leaves {max(free, 0) >> 20} MiB "
            f"where at least {needed >> 20} are needed to begin; raise it"
        )
    _share_one_heap()


def _share_one_heap() -> None:
    import ctypes  # commands start without it

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Collect no garbage meanwhile; it goes on as it was before."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def memory_is_limited() -> bool:
    """Whether this process may have no more than so much address space (`ulimit -v`)."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def available_cores() -> int:
    """Cores this process may use; on macOS all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
