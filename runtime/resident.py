"""The most memory that this process held at once."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_bytes() -> int:
    """Resident bytes of this process at their highest so far.

    By the kernel's own mark of it where there is one: `getrusage` of a process that was started by a larger one begins
    with that one's.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10
