"""Cohorts on a real Ray cluster of two nodes; a script, started in a network of its own where there is only
loopback.

`ray_cluster.py deaths` kills a worker and a node; `ray_cluster.py hangs` runs slides that kill or stop their
worker. Each runs its cohorts in turn and prints one line of JSON.
"""

from __future__ import annotations

import fcntl
import importlib
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
from types import SimpleNamespace
from typing import Any

PATIENCE_SECONDS = 1200
PATIENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_server_port_wait_time_s": str(PATIENCE_SECONDS),
    "RAY_gcs_server_request_timeout_seconds": str(PATIENCE_SECONDS),
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(PATIENCE_SECONDS),
    "RAY_worker_register_timeout_seconds": str(PATIENCE_SECONDS),
    "RAY_raylet_client_num_connect_attempts": str(PATIENCE_SECONDS),
    # A node that is dead refuses the check, and is noticed as before.
    "RAY_health_check_timeout_ms": str(1000 * PATIENCE_SECONDS),
    # Nor does it end a worker because others fill this machine's memory.
    "RAY_memory_monitor_refresh_ms": "0",
}
"""Environment in which Ray takes nothing for dead that a busy machine holds up."""


def wait_longer_for_nodes() -> None:
    """Give a node 20 minutes to start; to Ray 30 s are the limit, whatever its settings say."""
    node: Any = importlib.import_module("ray._private.node")
    slow = SimpleNamespace(**vars(time))
    slow.monotonic = lambda: time.monotonic() / 40
    node.time = slow


def loopback_up() -> None:
    """What `ip link set lo up` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags = struct.unpack("16sh", fcntl.ioctl(sock, 0x8913, struct.pack("16sh", b"lo", 0))[:18])[1]
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", flags | 1))


def wait_for(*paths: Path) -> None:
    """Until all of them are there; whoever waits is killed if they never are."""
    while not all(path.exists() for path in paths):
        time.sleep(0.02)


class Played:
    """A clock that passes ten times as fast while a slide hangs, and else not at all."""

    def __init__(self, hanging: Path) -> None:
        self._hanging, self._now, self._seen = hanging, 0.0, time.monotonic()
        self.sleep = time.sleep

    def monotonic(self) -> float:
        now = time.monotonic()
        self._now += 10 * (now - self._seen) if self._hanging.exists() else 0
        self._seen = now
        return self._now


def main(faults: str) -> None:
    loopback_up()
    temporary = tempfile.mkdtemp(prefix="mr", dir="/tmp")  # sockets lie in it, whose names must be short
    os.environ |= {"HOME": temporary, "RAY_TMPDIR": temporary, **PATIENT}
    from click.testing import CliRunner
    from ray.cluster_utils import Cluster

    from mclst.runtime.cli.infer import main as infer
    from mclst.runtime.cohort.cluster_worker import Task, Worker
    from mclst.runtime.expression_map.lock import lock_output
    from mclst.runtime.expression_map.row_file import RowFile

    here = Path.cwd()
    module: Any = importlib.import_module("mclst.runtime.cohort.cluster")

    class Killed(Worker):
        """Dies once amid the rows of slide s4."""

        def run(self, task: Task) -> Any:
            if task.name == "s4" and task.attempt == 1:
                write = RowFile.write

                def write_and_die(rows: Any, *values: Any) -> None:
                    write(rows, *values)
                    (here / "killed").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)

                patched: Any = RowFile
                patched.write = write_and_die
            return super().run(task)

    class Lasting(Worker):
        """Begins slide s9 only once the node is gone, so that some are left for the other."""

        def run(self, task: Task) -> Any:
            if task.name == "s9":
                wait_for(here / "node-gone")
            return super().run(task)

    class Poisoned(Worker):
        """Dies of slide s1."""

        def run(self, task: Task) -> Any:
            if task.name == "s1":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(task)

    class Hanging(Worker):
        """Never comes back from slide s1; its map is being written meanwhile. The clock does not pass before,
        so that it makes no other slide late.
        """

        def run(self, task: Task) -> Any:
            if task.name == "s1":
                wait_for(here / "s0-ended", here / "s2-ended")
                lock_output(task.job.map_path)
                (here / "hanging").touch()
                threading.Event().wait()
            return super().run(task)

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    result: dict[str, Any] = {"interfaces": [name for _, name in socket.if_nameindex()]}
    wait_longer_for_nodes()
    Cluster._wait_for_node.__defaults__ = (PATIENCE_SECONDS,)
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})

    def cohort(name: str, *words: str, table: str = "cohort.csv", out: str = "") -> None:
        began = module.time.monotonic()
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
            "seconds": module.time.monotonic() - began,
        }

    try:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes(PATIENCE_SECONDS)
        if faults == "deaths":
            module.Worker = Killed
            cohort("worker")
            module.Worker = Worker
            cohort("parts", "--shard-tiles", "200", "--batch-size", "4", table="few.csv")

            def remove_the_node() -> None:
                while len(list(Path("node").glob("*.h5ad"))) < 4:
                    time.sleep(0.02)
                cluster.remove_node(second, allow_graceful=False)
                (here / "node-gone").touch()

            removing = threading.Thread(target=remove_the_node, daemon=True)
            removing.start()
            module.Worker = Lasting
            cohort("node")
            result["nodes left"] = len(cluster.list_all_nodes())
        else:
            module.Worker = Poisoned
            cohort("poison", table="few.csv")
            module.Worker, module.ATTEMPTS, module.DYING_SECONDS = Hanging, 2, 20.0
            module.time = Played(here / "hanging")
            finish = module.Pool._finish

            def finish_and_tell(pool: Any, ref: Any) -> Any:
                ended = finish(pool, ref)
                (here / f"{ended[0].name}-ended").touch()
                return ended

            module.Pool._finish = finish_and_tell
            cohort("hung", "--deadline", "30", table="few.csv")
            module.Worker, module.ATTEMPTS, module.time = Worker, 3, time
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
