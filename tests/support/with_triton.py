"""Run a command beside a real tritonserver of a bundle: `python tests/support/with_triton.py BUNDLE
mclst-bench load --server {http}`.

`{http}` and `{grpc}` in the command stand for the server's URLs. The encoder runs by onnxruntime in the
Python backend, see `triton_server`: a figure taken here is of that, not of Triton's ONNX Runtime backend.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from triton_server import TritonServer, stand_in, why_absent

from mclst.export.triton.repository import write_repository
from mclst.runtime.bundle.bundle import open_bundle


def main(bundle: Path, words: list[str]) -> int:
    """The command's exit code."""
    if why_absent():
        sys.exit(why_absent())
    with tempfile.TemporaryDirectory(prefix="mclst-triton-") as made:
        models = write_repository(open_bundle(bundle), Path(made) / "models")
        stand_in(models, "mclst")
        with TritonServer(models, folder=Path(made)) as server:
            server.wait(600)
            urls = {name: f"{name}://127.0.0.1:{getattr(server, name)}" for name in ("http", "grpc")}
            return subprocess.run([word.format(**urls) for word in words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
