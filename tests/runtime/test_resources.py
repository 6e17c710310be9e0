"""Limits of memory: what is refused before it begins, and what threads share under one."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mclst.runtime import resources
from mclst.runtime.errors import ResourceError

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")

THREADS = """
import resource, sys, threading
from pathlib import Path
from mclst.runtime.resources import check_limit

def mapped():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

limit = mapped() + (8 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
if sys.argv[1] == "checked":
    check_limit()
threading.stack_size(1 << 20)
all_hold, go = threading.Barrier(9), threading.Event()

def hold():
    blocks = [bytes(1 << 16) for _ in range(4)]
    all_hold.wait()
    go.wait()

before = mapped()
threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
all_hold.wait()
print(mapped() - before)
go.set()
"""


def mapped_by_eight_threads(checked: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", THREADS, checked], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="glibc alone gives each thread a heap of its own",
)
def test_under_a_limit_threads_share_one_heap() -> None:
    """Eight threads hold 2 MiB on 8 MiB of stacks; without the check each maps 64 MiB besides."""
    assert mapped_by_eight_threads("checked") < 64 << 20 < mapped_by_eight_threads("unchecked")


def test_too_little_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_share_one_heap", lambda: None)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 60, 1 << 60))
    resources.check_limit()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 20, 1 << 20))
    with pytest.raises(ResourceError, match=r"limit of 1 MiB .* leaves 0 MiB where at least 20 are needed"):
        resources.check_limit(2 * resources.THREAD_BYTES)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    resources.check_limit(1 << 62)
