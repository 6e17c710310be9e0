"""Every name of TensorRT in use exists in the bindings of 10.x, 11.x and RTX, and takes the values passed.

The code runs on a stand-in made from the real bindings of PyPI (tests/tensorrt-bindings.txt, which `make
test` installs under build/tensorrt). These load over three empty libraries, so that classes and signatures
can be read on any machine.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeDriver
from recording_tensorrt import RecordingTensorRT, Surface, signatures

from mclst.runtime.bundle.manifest import FileRecord
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.encoder.tensorrt import build, session
from mclst.runtime.encoder.tensorrt.build import EngineError, build_engine, check_parses
from mclst.runtime.encoder.tensorrt.engine_cache import Engine
from mclst.runtime.encoder.tensorrt.library import Library
from mclst.runtime.encoder.tensorrt.manifest import EngineKey, EngineManifest

ROOT = Path(__file__).resolve().parents[3]
BINDINGS = ROOT / "build" / "tensorrt"
VERSIONS = [
    line.split("==")[1]
    for line in (ROOT / "tests" / "tensorrt-bindings.txt").read_text().split()
    if "==" in line
]
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
TILE_PX, WIDTH = 8, 3


@functools.cache
def stubs() -> Path:
    """A folder with the three empty libraries, of 10 and 11."""
    folder = BINDINGS / "stubs"
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "stub.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for library in LIBRARIES:
        for major in (10, 11):
            name = f"{library}.so.{major}"
            command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
            subprocess.run(command, check=True)
    return folder


@functools.cache
def surface(version: str) -> Surface:
    if version == "rtx":
        pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
        module, path = "tensorrt_rtx_bindings", ""
    else:
        if not (BINDINGS / version / "tensorrt_bindings").is_dir():
            pytest.skip(f"the bindings of {version} are not in build/tensorrt, where make test puts them")
        if shutil.which("cc") is None:
            pytest.skip("there is no C compiler for the libraries under the bindings")
        module, path = "tensorrt_bindings", str(BINDINGS / version)
    paths = {"PYTHONPATH": path, "LD_LIBRARY_PATH": "" if version == "rtx" else str(stubs())}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "tensorrt_surface.py"), module],
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names: Surface = json.loads(done.stdout)
    return names


def recorder(version: str, driver: FakeDriver, errors: int = 0) -> RecordingTensorRT:
    """A TensorRT whose parser reports `errors`, and whose networks and engines are those of an encoder."""
    trt: RecordingTensorRT

    def by_direction(inputs: Any, outputs: Any) -> Any:
        return lambda tensor: inputs() if tensor.origin == "get_input" else outputs()

    def execute(context: Any, stream: int) -> bool:
        driver.put(stream, lambda: None)
        return True

    shapes = {"tiles": (-1, TILE_PX, TILE_PX, 3), "embedding": (-1, WIDTH)}
    values: dict[tuple[str, str], Any] = {
        ("ComputeCapability", "__members__"): {"SM86": 0, "SM120": 1, "CURRENT": 2},
        ("Builder", "build_serialized_network"): b"plan",
        ("INetworkDefinition", "num_inputs"): 1,
        ("INetworkDefinition", "num_outputs"): 1,
        ("INetworkDefinition", "num_layers"): 2,
        ("OnnxParser", "num_errors"): errors,
        ("OnnxParser", "get_error"): lambda parser, index: trt.instance("ParserError", "get_error", (index,)),
        ("ParserError", "node_operator"): "Loop",
        ("ParserError", "desc"): "no such operator",
        ("IBuilderConfig", "add_optimization_profile"): 0,
        ("IBuilderConfig", "set_timing_cache"): True,
        ("ITimingCache", "serialize"): b"timings",
        ("ITensor", "name"): by_direction(lambda: "tiles", lambda: "embedding"),
        ("ITensor", "dtype"): by_direction(lambda: trt.DataType.UINT8, lambda: trt.DataType.FLOAT),
        ("ITensor", "shape"): by_direction(lambda: shapes["tiles"], lambda: shapes["embedding"]),
        ("ICudaEngine", "num_io_tensors"): 2,
        ("ICudaEngine", "num_optimization_profiles"): 2,
        ("ICudaEngine", "get_tensor_profile_shape"): lambda engine, name, index: (
            [(n, TILE_PX, TILE_PX, 3) for n in (1, 1, (16, 8)[index])]
        ),
        ("IExecutionContext", "set_optimization_profile_async"): True,
        ("ICudaEngine", "get_tensor_name"): lambda engine, index: ("tiles", "embedding")[index],
        ("ICudaEngine", "get_tensor_dtype"): lambda engine, name: (
            trt.DataType.UINT8 if name == "tiles" else trt.DataType.FLOAT
        ),
        ("ICudaEngine", "get_tensor_shape"): lambda engine, name: shapes[name],
        ("IExecutionContext", "infer_shapes"): [],
        ("IExecutionContext", "get_tensor_shape"): lambda context, name: shapes[name],
        ("IExecutionContext", "execute_async_v3"): execute,
    }
    trt = RecordingTensorRT(f"TensorRT {version}", surface(version), values)
    return trt


def run_everything(version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Build, parse, load and run an engine with every option; the (class, name) pairs used."""
    driver = FakeDriver()
    package = ModuleType("cuda.bindings")
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    monkeypatch.setattr(session, "lean_library", lambda version: Path("libnvinfer_lean.so"))
    rtx = version == "rtx"
    onnx = folder / "encoder.onnx"
    onnx.write_bytes(b"graph")
    key = EngineKey(
        onnx_sha256="0" * 64,
        precision="fp32",
        flavor="tensorrt-rtx" if rtx else "tensorrt",
        version="10.0.0",
        max_batch=16,
        targets=("sm_86",) if rtx else (),
        gpu=None if rtx else Gpu("Made-up RTX", "8.6", "580"),
        workspace_bytes=1 << 20,
        version_compatible=not rtx,
        hardware_compatible=not rtx,
        platform="linux-x86_64",
    )
    trt = recorder(version, driver)
    library = Library(key.flavor, trt, "10.0.1")
    built = build_engine(library, onnx, key, timing_cache=folder / "timings")
    assert (built.plan, built.output, built.tile_px) == (b"plan", "embedding", TILE_PX)
    assert (folder / "timings").read_bytes() == b"timings"
    logger = build._make_logger(trt)
    for severity in (trt.ILogger.ERROR, trt.ILogger.INFO):
        logger.log(severity, str(severity))
    assert logger.errors == ["ILogger.ERROR"]

    failing = recorder(version, driver, errors=1)
    with pytest.raises(EngineError, match="its parser refuses it: Loop: no such operator"):
        check_parses(Library(key.flavor, failing, "10.0.1"), onnx)

    manifest = EngineManifest(
        format="mclst-engine/1",
        key=key,
        output=built.output,
        tile_px=built.tile_px,
        layers=built.layers,
        plan=FileRecord(bytes=4, sha256="1" * 64),
        seconds=0,
    )
    opened = session.open_tensorrt(library, CudaDevice(), Engine(folder, manifest, built.plan))
    tiles = np.zeros((4, TILE_PX, TILE_PX, 3), np.uint8)
    assert opened.encode(tiles).shape == (4, WIDTH)
    return (trt.used | failing.used) - {("ILogger", "INFO")}


@pytest.mark.parametrize(
    "doc", ["f(self: A, x: int, y: list[int, int] = [1, 2]) -> None", "f(x: int, y: A = (1, 2)) -> m.None"]
)
def test_signatures_are_read_as_they_stand(doc: str) -> None:
    assert signatures(doc) == [(1, 2, "None")]


@pytest.mark.parametrize("version", [*VERSIONS, "rtx"])
def test_every_call_is_there(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = run_everything(version, tmp_path, monkeypatch)
    expected = {
        ("Builder", "build_serialized_network"),
        ("OnnxParser", "parse"),
        ("OnnxParser", "get_error"),
        ("IOptimizationProfile", "set_shape"),
        ("IBuilderConfig", "set_timing_cache"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("Runtime", "deserialize_cuda_engine"),
        ("IExecutionContext", "set_input_shape"),
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "execute_async_v3"),
    }
    if version == "rtx":
        expected |= {("IBuilderConfig", "set_compute_capability"), ("ICudaEngine", "create_runtime_config")}
    else:
        expected |= {("Runtime", "load_runtime"), ("BuilderFlag", "VERSION_COMPATIBLE")}
    assert expected <= used
    gone = {"FP16", "INT8", "EXPLICIT_BATCH", "execute_async_v2", "device_memory_size", "supports_model"}
    assert not gone & {name for _, name in used}


def test_no_name_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run above uses every attribute in the source that TensorRT also has."""
    used: set[str] = set()
    names: set[str] = set()
    for version in (VERSIONS[-1], "rtx"):
        folder = tmp_path / version
        folder.mkdir()
        used |= {name for _, name in run_everything(version, folder, monkeypatch)}
        names |= {name for members in surface(version).values() for name in members}
    written = {
        node.attr
        for module in (build, session)
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
        if isinstance(node, ast.Attribute)
    }
    of_other_objects = {"append", "allocate", "__init__"}
    assert (written & names) - used <= of_other_objects


WRONG: dict[str, Callable[[Any, Any], Any]] = {
    "module": lambda trt, config: trt.NoSuchClass,
    "method": lambda trt, config: config.set_flags(),
    "values": lambda trt, config: config.set_flag(),
    "property": lambda trt, config: setattr(config, "no_such_property", 1),
    "constructor": lambda trt, config: trt.Builder(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_name_or_call_is_noticed(wrong: str) -> None:
    trt = recorder(VERSIONS[-1], FakeDriver())
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    config.set_flag(trt.BuilderFlag.TF32)
    with pytest.raises(AssertionError, match=r"has no|takes \["):
        WRONG[wrong](trt, config)


def test_a_name_that_went_away_is_noticed() -> None:
    """Names that 11 removed."""
    old, new = surface("10.3.0"), surface("11.4.0.106")
    for owner, name in (("BuilderFlag", "FP16"), ("OnnxParser", "supports_model"), ("", "IInt8Calibrator")):
        assert name in old[owner] and name not in new[owner]
    assert signatures(new["IOptimizationProfile"]["set_shape"])[0][:2] == (4, 4)
