"""A real tritonserver on loopback, for tests alone: its wheel is an old release that must not meet a network.

It holds no ONNX Runtime backend, so `stand_in` puts a Python-backend model with onnxruntime in the encoder's
place, its tensors, shapes and scheduling unchanged. Start it with `TritonServer`, in a `with` block.
"""

from __future__ import annotations

import os
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import uuid
import venv
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf import text_format

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "tritonserver"
SECRET = "mclst-admin=let-me-in"
GUARDED = "model-repository,shared-memory,trace,logging"
"""What docs/serve.md restricts: a client needs none of it."""

ENCODER = '''"""In place of the ONNX Runtime backend, with the same graph."""

import time

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        folder = f"{args['model_repository']}/{args['model_version']}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options)
        self.output = self.session.get_outputs()[0].name

    def execute(self, requests):
        batches = [pb.get_input_tensor_by_name(request, "tiles").as_numpy() for request in requests]
        (values,) = self.session.run([self.output], {"tiles": np.concatenate(batches)})
        time.sleep(SECONDS)
        ends = np.cumsum([len(tiles) for tiles in batches])
        parts = np.split(values, ends[:-1])
        return [pb.InferenceResponse([pb.Tensor(self.output, np.ascontiguousarray(part))]) for part in parts]
'''


def why_absent() -> str:
    """Why no server can be started here; "" where one can."""
    if not _stub().is_file():
        return "tritonserver is not in build/tritonserver: make test puts it there, where it has a wheel"
    return ""


def stand_in(repository: Path, name: str, *, seconds: float = 0.0) -> None:
    """Have `NAME_encoder` of a repository run by onnxruntime in Triton's Python backend, each batch `seconds`
    longer.
    """
    from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

    folder = repository / f"{name}_encoder"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    assert config.backend == "onnxruntime"
    config.backend = "python"
    config.instance_group[0].kind = ModelInstanceGroup.KIND_CPU
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    (folder / "1" / "model.py").write_text(ENCODER.replace("SECONDS", repr(seconds)))


class TritonServer:
    """A server of some repositories; its address is known once `wait` returns."""

    def __init__(
        self,
        *repositories: Path,
        folder: Path,
        all_must_load: bool = True,
        ports: tuple[int, int, int] | None = None,
    ) -> None:
        """folder: for its backends and its log. all_must_load: end at once where a model is refused.

        ports: of HTTP, gRPC and metrics, such as those of a server that has ended; None for free ones.
        """
        self.folder = folder
        self.log = folder / "server.log"
        self.ports = ports or _free_ports()
        self.http, self.grpc, metrics = self.ports
        self._shm = f"mclst_test_{os.getpid()}_{uuid.uuid4().hex[:8]}_"
        backends = _backends(folder)
        words = [
            str(HOME / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
            *(f"--model-repository={path}" for path in repositories),
            f"--backend-directory={backends}",
            *(f"--{service}-address=127.0.0.1" for service in ("http", "grpc", "metrics")),
            f"--http-port={self.http}",
            f"--grpc-port={self.grpc}",
            f"--metrics-port={metrics}",
            f"--exit-on-error={str(all_must_load).lower()}",
            "--strict-readiness=false",
            "--model-control-mode=none",
            "--disable-auto-complete-config",
            f"--http-restricted-api={GUARDED}:{SECRET}",
            f"--grpc-restricted-protocol={GUARDED}:{SECRET}",
            f"--backend-config=python,shm-region-prefix-name={self._shm}",
            "--exit-timeout-secs=30",
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=_environment(folder))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def wait(self, seconds: float = 120) -> Self:
        """Until it answers, or has ended."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and not self._answers():
            assert time.monotonic() < until, f"no answer in {seconds} s: {self.log_text()[-3000:]}"
            time.sleep(0.1)
        return self

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self, seconds: float = 60) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def close(self) -> None:
        """End it, however, and its segments."""
        self.process.kill()
        self.process.wait(30)
        until = time.monotonic() + 10
        while any(_alive(pid) for pid in self.stubs()) and time.monotonic() < until:
            time.sleep(0.05)  # they follow their server within a second, or never
        for pid in self.stubs():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for segment in self.segments():
            segment.unlink(missing_ok=True)

    def segments(self) -> list[Path]:
        return sorted(Path("/dev/shm").glob(f"{self._shm}*"))

    def stubs(self, model: str = "") -> list[int]:
        """Pids of the Python backend's processes, of one model or all."""
        values = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            ours = len(words) > 1 and words[0].endswith("triton_python_backend_stub")
            if ours and any(self._shm in word for word in words) and f"/{model}" in words[1]:
                values.append(int(entry.parent.name))
        return values

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _stub() -> Path:
    stubs = HOME / "pytriton" / "tritonserver" / "python_backend_stubs"
    return stubs / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"


def _backends(folder: Path) -> Path:
    """The Python backend with the stub of this Python."""
    backend = folder / "backends" / "python"
    if backend.is_dir():
        return backend.parent
    backend.mkdir(parents=True)
    installed_versions = HOME / "pytriton" / "tritonserver" / "backends" / "python"
    for path in (*installed_versions.iterdir(), _stub()):
        (backend / path.name).symlink_to(path)
    return backend.parent


def _environment(folder: Path) -> dict[str, str]:
    """The stub embeds this Python, whose own library it must find, and takes its packages from the first one
    in PATH.

    So that one is an environment which sees what this process sees.
    """
    home = folder / "python"
    if not home.is_dir():
        venv.EnvBuilder(symlinks=True).create(home)
        (packages,) = home.glob("lib/python*/site-packages")
        # This server's stub knows numpy 1 alone, which lies beside it.
        first = [str(HOME), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        seen = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        (packages / "seen.pth").write_text("\n".join([*filter(None, first), *seen]) + "\n")
    libraries: Iterable[str | None] = (
        str(HOME / "nvidia_pytriton.libs"),
        sysconfig.get_config_var("LIBDIR"),
        os.environ.get("LD_LIBRARY_PATH"),
    )
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


def _free_ports() -> tuple[int, int, int]:
    sockets = [socket.socket() for _ in range(3)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    first, second, third = (int(one.getsockname()[1]) for one in sockets)
    for one in sockets:
        one.close()
    return first, second, third


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
