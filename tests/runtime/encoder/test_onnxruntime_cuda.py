"""What ONNX Runtime's CUDA provider needs to start, as far as a machine without a GPU can tell."""

from __future__ import annotations

import re
import shutil
import site
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from threading import Event, Thread, current_thread
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from mclst.runtime.encoder import onnxruntime_cpu
from mclst.runtime.errors import ResourceError

SYSTEM = re.compile(r"^(ld-linux.*|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|cuda)\.so\.\d+)$")
"""Of the system, and of NVIDIA's driver."""


def test_the_gpu_extra_brings_cuda_and_cudnn() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert any(
        r.startswith("onnxruntime-gpu[cuda,cudnn]")
        for r in pyproject["project"]["optional-dependencies"]["gpu"]
    )


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_every_library_that_the_provider_needs_comes_with_the_extra() -> None:
    try:
        files = distribution("onnxruntime-gpu").files or []
    except PackageNotFoundError:
        pytest.skip("onnxruntime-gpu is not installed")
    library = next(Path(str(f.locate())) for f in files if f.name == "libonnxruntime_providers_cuda.so")
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    installed = {
        path.name for folder in site.getsitepackages() for path in Path(folder, "nvidia").rglob("*.so*")
    } | {path.name for path in library.parent.iterdir()}
    assert len(needed) > 5
    assert {name for name in needed - installed if not SYSTEM.match(name)} == set()


def test_cuda_libraries_of_wheels_are_loaded_before_the_provider_starts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []
    providers = ["CPUExecutionProvider"]

    def preload_dlls() -> None:
        print("Failed to load libcudnn.so.9")
        loaded.append("all")

    ort = ModuleType("onnxruntime")
    ort.get_available_providers = lambda: providers  # type: ignore[attr-defined]
    ort.preload_dlls = preload_dlls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", ort)
    onnxruntime_cpu._load_cuda_libraries.cache_clear()
    try:
        onnxruntime_cpu.check_onnxruntime("cpu")
        with pytest.raises(ResourceError, match="no CUDAExecutionProvider"):
            onnxruntime_cpu.check_onnxruntime("cuda")
        assert not loaded
        providers.insert(0, "CUDAExecutionProvider")
        for _ in range(2):
            assert onnxruntime_cpu.check_onnxruntime("cuda") == "CUDAExecutionProvider"
    finally:
        onnxruntime_cpu._load_cuda_libraries.cache_clear()
    assert loaded == ["all"]
    out, err = capfd.readouterr()
    assert not out and "libcudnn" in err


def test_stdout_comes_back_when_two_threads_load_the_cuda_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    second = Thread(target=onnxruntime_cpu.check_onnxruntime, args=("cuda",))
    both_inside, first_left = Event(), Event()

    def preload_dlls() -> None:
        loads.append(current_thread().name)
        if len(loads) > 1:
            both_inside.set()
            first_left.wait()
        else:
            second.start()
            both_inside.wait(0.2)  # never comes where one waits for the other

    ort = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider"], preload_dlls=preload_dlls
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", ort)
    stdout = sys.stdout
    onnxruntime_cpu._load_cuda_libraries.cache_clear()
    try:
        onnxruntime_cpu.check_onnxruntime("cuda")
        first_left.set()
        second.join()
        assert sys.stdout is stdout and len(loads) == 1
    finally:
        sys.stdout = stdout
        onnxruntime_cpu._load_cuda_libraries.cache_clear()


class Placed:
    """A session on CUDA whose operators of `on_cpu` stay on the CPU; asks for what it is configured with."""

    on_cpu: tuple[str, ...] = ()
    entries: ClassVar[dict[str, str]] = {}

    def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
        self.name = providers[0][0]
        Placed.entries = {
            key: options.get_session_config_entry(f"session.{key}")
            for key in ("record_ep_graph_assignment_info", "disable_cpu_ep_fallback")
            if options.has(f"session.{key}")
        }

    def get_providers(self) -> list[str]:
        return [self.name, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        parts = {"CPUExecutionProvider": self.on_cpu, self.name: ("Conv", "Gemm")}
        return [
            SimpleNamespace(
                ep_name=name, get_nodes=lambda types=types: [SimpleNamespace(op_type=t) for t in types]
            )
            for name, types in parts.items()
        ]


class Options:
    def __init__(self) -> None:
        self.set: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.set[key] = value

    def get_session_config_entry(self, key: str) -> str:
        return self.set[key]

    def has(self, key: str) -> bool:
        return key in self.set


@pytest.fixture
def placing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Placed]]:
    """Opens graphs by a new class of `Placed` sessions."""
    session = type("Session", (Placed,), {})
    ort = ModuleType("onnxruntime")
    ort.get_available_providers = lambda: ["CUDAExecutionProvider"]  # type: ignore[attr-defined]
    ort.SessionOptions = Options  # type: ignore[attr-defined]
    ort.InferenceSession = session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime", ort)
    onnxruntime_cpu._load_cuda_libraries.cache_clear()
    yield session
    onnxruntime_cpu._load_cuda_libraries.cache_clear()


def test_operators_of_sizes_may_stay_on_the_cpu_and_no_others(placing: type[Placed]) -> None:
    for allowed in ((), ("Shape", "Gather", "Mod")):
        placing.on_cpu = allowed
        onnxruntime_cpu.open_graph(Path("sequence.onnx"), "cuda")
    assert Placed.entries == {"record_ep_graph_assignment_info": "1"}
    placing.on_cpu = ("Shape", "MatMul", "Erf")
    with pytest.raises(
        ResourceError, match=r"would compute Erf, MatMul of sequence.onnx on the CPU, not on cuda"
    ):
        onnxruntime_cpu.open_graph(Path("sequence.onnx"), "cuda")


def test_an_onnx_runtime_that_cannot_be_asked_refuses_any_operator_on_the_cpu(
    placing: type[Placed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Placed, "get_provider_graph_assignment_info")
    onnxruntime_cpu.open_graph(Path("encoder.onnx"), "cuda")
    assert Placed.entries == {"disable_cpu_ep_fallback": "1"}


def test_onnx_runtime_says_where_it_computes_what(small_bundle: Path) -> None:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = small_bundle / "encoder.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not tell where it computes")
    types = {node.op_type for node in onnx.load(path).graph.node}
    assert onnxruntime_cpu.operators_on_cpu(session) == types - {"Constant"}
