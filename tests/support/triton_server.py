"""A real tritonserver on loopback, for tests alone: its wheel is an old release that must not meet a network.

It holds no ONNX Runtime backend, so `stand_in` puts a Python-backend model with onnxruntime in the encoder's
place, its tensors, shapes and scheduling unchanged. Start it with `TritonServer`, in a `with` block.
"""

from __future__ import annotations

import os
import signal
import site
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
from held_port import HeldPort

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "tritonserver"
SECRET = "mclst-admin=let-me-in"
PATIENCE_SECONDS = 600
"""How long a busy machine may take to start or end it."""
GUARDED = "model-repository,shared-memory,trace,logging"
"""What docs/serve.md restricts: a client needs none of it."""

ENCODER = '''"""In place of the ONNX Runtime backend, with the same graph."""

import time

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    gate, passed = "", 0

    def initialize(self, args):
        folder = f"{args['model_repository']}/{args['model_version']}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options)
        self.output = self.session.get_outputs()[0].name

    def wait_at_the_gate(self):
        while True:
            try:
                with open(GATE) as file:
                    gate = file.read()
            except OSError:
                return
            if gate != self.gate:
                self.gate, self.passed = gate, 0
            if self.passed < int(gate.split()[0]):
                self.passed += 1
                return
            time.sleep(0.005)

    def execute(self, requests):
        self.wait_at_the_gate()
        batches = [pb.get_input_tensor_by_name(request, "tiles").as_numpy() for request in requests]
        (values,) = self.session.run([self.output], {"tiles": np.concatenate(batches)})
        ends = np.cumsum([len(tiles) for tiles in batches])
        parts = np.split(values, ends[:-1])
        return [pb.InferenceResponse([pb.Tensor(self.output, np.ascontiguousarray(part))]) for part in parts]
'''


def why_absent() -> str:
    """Why no server can be started here; "" where one can."""
    if not _stub().is_file():
        return "tritonserver is not in build/tritonserver: make test puts it there, where it has a wheel"
    return ""


class Gate:
    """Holds an encoder up, so that a test decides what waits for it; see `stand_in`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def shut(self, after: int = 0) -> None:
        """Let through so many batches from now on, and then none."""
        new = self.path.with_suffix(".new")
        new.write_text(f"{after} batches, {uuid.uuid4().hex}")
        new.replace(self.path)

    def open(self) -> None:
        self.path.unlink(missing_ok=True)


def stand_in(repository: Path, name: str, gate: Gate | None = None) -> None:
    """Have `NAME_encoder` of a repository run by onnxruntime in Triton's Python backend, behind a gate."""
    from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

    folder = repository / f"{name}_encoder"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    assert config.backend == "onnxruntime"
    config.backend = "python"
    config.instance_group[0].kind = ModelInstanceGroup.KIND_CPU
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    (folder / "1" / "model.py").write_text(ENCODER.replace("GATE", repr(str(gate.path) if gate else "")))


class TritonServer:
    """A server of some repositories; its address is known once `wait` returns."""

    def __init__(
        self,
        *repositories: Path,
        folder: Path,
        all_must_load: bool = True,
        ports: tuple[HeldPort, HeldPort, HeldPort] | None = None,
    ) -> None:
        """folder: for its backends and its log. all_must_load: end at once where a model is refused.

        ports: of HTTP, gRPC and metrics, such as those of a server that has ended; None for free ones.
        """
        self.folder = folder
        self.log = folder / "server.log"
        self.ports = ports or (HeldPort(), HeldPort(), HeldPort())
        self.http, self.grpc, metrics = (port.number for port in self.ports)
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
            f"--backend-config=python,stub-timeout-seconds={PATIENCE_SECONDS}",
            f"--exit-timeout-secs={PATIENCE_SECONDS}",
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=_environment(folder))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def wait(self, seconds: float = PATIENCE_SECONDS) -> Self:
        """Until it answers, or has ended."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and not self._answers():
            assert time.monotonic() < until, f"no answer in {seconds} s: {self.log_text()[-3000:]}"
            time.sleep(0.1)
        return self

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(2 * PATIENCE_SECONDS)

    def close(self, *, keep_ports: bool = False) -> None:
        """End it, however, and its segments."""
        self.process.kill()
        self.process.wait()
        follow = time.monotonic() + 10  # they follow their server within a second, or never
        while stubs := self.stubs():
            for pid in stubs if time.monotonic() > follow else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for segment in self.segments():
            segment.unlink(missing_ok=True)
        for port in () if keep_ports else self.ports:
            port.close()

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
