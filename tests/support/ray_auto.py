"""What other users can reach of `--cluster auto`; a script, started in a network of its own.

That network has only loopback, with a second address, such as a machine has in a real network.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ray_cluster import PATIENCE_SECONDS, PATIENT, loopback_up, wait_longer_for_nodes

REFUSAL = "InvalidAuthToken"
JOIN = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(lambda: "ran").remote()))
"""


def join(address: str, environment: dict[str, str], folder: Path) -> tuple[str, str]:
    """What a process says that wants to join until it is refused, or ends: on stdout, and on stderr."""
    out, err = folder / "joined.out", folder / "joined.err"
    with out.open("w") as to_out, err.open("w") as to_err:
        words = [sys.executable, "-c", JOIN, address]
        process = subprocess.Popen(words, env=environment, stdout=to_out, stderr=to_err)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and REFUSAL not in err.read_text() and time.monotonic() < give_up:
        time.sleep(0.1)
    process.kill()
    process.wait()
    return out.read_text(), err.read_text()


def main() -> None:
    loopback_up()
    for words in ("addr add 10.9.8.7/32 dev lo", "route add default dev lo src 10.9.8.7"):
        subprocess.run(["ip", *words.split()], check=False)
    base = tempfile.mkdtemp(prefix="mr", dir="/tmp")
    os.environ |= {"HOME": base, "TMPDIR": base, **PATIENT}
    import psutil

    module: Any = importlib.import_module("mclst.runtime.cohort.cluster")
    private_cluster = module._private_cluster

    def patient_cluster() -> Any:
        wait_longer_for_nodes()  # Ray is imported by now, and not before
        return private_cluster()

    module._private_cluster = patient_cluster
    with module.cluster("auto") as ray:
        temporary = Path(ray.get_runtime_context().get_temp_dir())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("8.8.8.8", 53))
            address = sock.getsockname()[0]
        answer = ray.get(ray.remote(lambda: 6 * 7).remote())
        private = temporary.parent
        stranger = {name: text for name, text in os.environ.items() if not name.startswith("RAY_AUTH_TOKEN")}
        stranger |= {"HOME": "/nonexistent", "RAY_AUTH_MODE": "disabled"}
        joined, refusal = join(ray.get_runtime_context().gcs_address, stranger, Path(base))
        listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN"}
        result = {
            "answer": answer,
            "joined": joined,
            "refusal": refusal,
            "address": address,
            "folder": str(private.parent) == base,
            "mode": private.stat().st_mode & 0o777,
            "longest socket": max(len(str(path)) for path in temporary.glob("session_2*/sockets/*")),
            "listening": sorted(listening),
            "readable": [str(p) for p in Path(base).rglob("auth_token") if p.stat().st_mode & 0o077],
        }
    result["left"] = private.exists()
    shutil.rmtree(base)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
