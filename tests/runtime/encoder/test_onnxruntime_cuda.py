"""What ONNX Runtime's CUDA provider needs to start, as far as a machine without a GPU can tell."""

from __future__ import annotations

import re
import shutil
import site
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

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
