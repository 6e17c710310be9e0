"""Cohorts on a real Ray cluster of two nodes; a script, started in a network of its own where there is only
loopback.

`ray_cluster.py deaths` kills a worker and a node; `ray_cluster.py hangs` runs slides that kill or stop their
worker. Each runs its cohorts in turn and prints one line of JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any


def loopback_up() -> None:
    """What `ip link set lo up` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags = struct.unpack("16sh", fcntl.ioctl(sock, 0x8913, struct.pack("16sh", b"lo", 0))[:18])[1]
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", flags | 1))


def after(maps: int, folder: Path, do: Any) -> threading.Thread:
    """Do something once so many maps stand in a folder."""

    def watch() -> None:
        until = time.monotonic() + 120
        while len(list(folder.glob("*.h5ad"))) < maps:
            if time.monotonic() > until:
                return
            time.sleep(0.02)
        done.append(do())

    done: list[Any] = []
    thread = threading.Thread(target=watch, daemon=True)
    thread.done = done  # type: ignore[attr-defined]
    thread.start()
    return thread


def kill_a_worker() -> int:
    """SIGKILL a worker that is at work, by its pid."""
    import psutil

    while True:
        for process in psutil.Process().children(recursive=True):
            if process.cmdline()[:1] == ["ray::Worker.run"]:
                os.kill(process.pid, signal.SIGKILL)
                return int(process.pid)


def main(faults: str) -> None:
    loopback_up()
    temporary = tempfile.mkdtemp(prefix="mr", dir="/tmp")  # sockets lie in it, whose names must be short
    os.environ["HOME"] = os.environ["RAY_TMPDIR"] = temporary
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from click.testing import CliRunner
    from ray.cluster_utils import Cluster

    import mclst.runtime.cohort.cluster as module
    from mclst.runtime.cli.infer import main as infer
    from mclst.runtime.cohort.cluster_worker import Task, Worker
    from mclst.runtime.expression_map.lock import lock_output

    class Poisoned(Worker):
        """Dies of slide s1."""

        def run(self, task: Task) -> Any:
            if task.name == "s1":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(task)

    class Hanging(Worker):
        """Never comes back from slide s1; its map is being written meanwhile."""

        def run(self, task: Task) -> Any:
            if task.name == "s1":
                lock_output(task.job.map_path)
                time.sleep(600)
            return super().run(task)

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    result: dict[str, Any] = {"interfaces": [name for _, name in socket.if_nameindex()]}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})

    def cohort(name: str, *words: str, table: str = "cohort.csv", out: str = "") -> None:
        began = time.monotonic()
        words = (
            "--slides",
            table,
            "--out",
            out or name,
            "--cluster",
            cluster.address,
            "--cores",
            "1",
            *words,
        )
        done = CliRunner().invoke(infer, [*words, "--no-picture", "--no-html", "--workers", "1"])
        result[name] = {
            "code": done.exit_code,
            "stdout": done.stdout,
            "stderr": done.stderr,
            "seconds": time.monotonic() - began,
        }

    try:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        if faults == "deaths":
            watching = after(4, Path("worker"), kill_a_worker)
            cohort("worker")
            result["killed"] = watching.done  # type: ignore[attr-defined]
            cohort("parts", "--shard-tiles", "200", "--batch-size", "4", table="few.csv")
            watching = after(4, Path("node"), lambda: cluster.remove_node(second, allow_graceful=False))
            cohort("node")
            result["node killed"] = len(watching.done)  # type: ignore[attr-defined]
            result["nodes left"] = len(cluster.list_all_nodes())
        else:
            module.Worker = Poisoned  # type: ignore[attr-defined, misc]
            cohort("poison", table="few.csv")
            module.Worker, module.ATTEMPTS, module.DYING_SECONDS = Hanging, 2, 2.0  # type: ignore[attr-defined, misc]
            cohort("hung", "--deadline", "30", table="few.csv")
            module.Worker, module.ATTEMPTS = Worker, 3  # type: ignore[attr-defined, misc]
            shutil.copy("hung/cohort.run.json", "hung.json")
            cohort("hung again", "--deadline", "600", table="few.csv", out="hung")
    finally:
        cluster.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
