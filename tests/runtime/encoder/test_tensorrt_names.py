"""Every call made to TensorRT exists under its name and takes what it is given, in the bindings of 10.x, 11.x and RTX.

The bindings are the real ones of PyPI (tests/tensorrt-bindings.txt, put under build/tensorrt by `make test`). They load
over three empty libraries, so that their classes and signatures can be looked at on any machine; nothing is called.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

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

# What an expression in these files is, by how it is written.
OBJECTS = {
    "engine_build.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "cache": "ITimingCache",
        "layer": "ILayer",
        "layer.get_output(0)": "ITensor",
        "i": "ITensor",
        "inputs[0]": "ITensor",
        "outputs[0]": "ITensor",
    },
    "trt.py": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "self._context": "IExecutionContext",
        "config": "IRuntimeConfig",
    },
}
RTX_ALONE = {
    ("", "ComputeCapability"),
    ("ComputeCapability", "__members__"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("", "CudaGraphStrategy"),
    ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
    ("", "DynamicShapesKernelSpecializationStrategy"),
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("ICudaEngine", "create_runtime_config"),
}
"""Used where the library is known to be tensorrt-rtx."""


@dataclass(frozen=True)
class Use:
    """`owner.name`, and how many values it is called with; None where it is not called."""

    owner: str
    name: str
    given: int | None
    where: str


@functools.cache
def uses() -> tuple[Use, ...]:
    found = []
    for file, objects in OBJECTS.items():
        tree = ast.parse((ROOT / "runtime" / file).read_text())
        called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            base = ast.unparse(node.value)
            if base == "trt" or base.startswith("trt."):
                owner = base.removeprefix("trt").removeprefix(".")
            elif base in objects:
                owner = objects[base]
            else:
                continue
            call = called.get(id(node))
            given = None if call is None else len(call.args) + len(call.keywords)
            found.append(Use(owner, node.attr, given, f"{file}:{node.lineno}"))
    return tuple(found)


@functools.cache
def stubs() -> Path:
    """A folder with the three libraries, of 10 and 11."""
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
def surface(version: str) -> dict[str, dict[str, str]]:
    if version == "rtx":
        pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
        module, path = "tensorrt_rtx_bindings", ""
    else:
        if not (BINDINGS / version / "tensorrt_bindings").is_dir():
            pytest.skip(f"the bindings of {version} are not in build/tensorrt, where make test puts them")
        if shutil.which("cc") is None:
            pytest.skip("there is no C compiler for the libraries under the bindings")
        module, path = "tensorrt_bindings", str(BINDINGS / version)
    where = {"PYTHONPATH": path, "LD_LIBRARY_PATH": "" if version == "rtx" else str(stubs())}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "tensorrt_surface.py"), module],
        env=os.environ | where,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def numbers_of_arguments(doc: str) -> list[tuple[int, int]]:
    """(fewest, most) values beside `self` of each signature in a docstring of pybind11."""
    found = []
    for match in re.finditer(r"^(?:\d+\. )?\w+\((?P<inside>.*)\) -> ", doc, re.MULTILINE):
        parts, depth, part = [], 0, ""
        for character in match["inside"] + ",":
            depth += (character in "([{<") - (character in ")]}>")
            if character == "," and depth == 0:
                parts.append(part.strip())
                part = ""
            else:
                part += character
        parts = [p for p in parts if p and not p.startswith("self") and p != "*"]
        if parts != ["*args", "**kwargs"]:
            found.append((sum("=" not in p for p in parts), len(parts)))
    return found


def test_the_calls_that_are_looked_at_are_those_that_matter() -> None:
    names = {(use.owner, use.name) for use in uses()}
    assert {
        ("Builder", "build_serialized_network"),
        ("OnnxParser", "parse"),
        ("OnnxParser", "get_error"),
        ("IOptimizationProfile", "set_shape"),
        ("IBuilderConfig", "set_timing_cache"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("Runtime", "deserialize_cuda_engine"),
        ("Runtime", "load_runtime"),
        ("IExecutionContext", "set_input_shape"),
        ("IExecutionContext", "set_tensor_address"),
        ("IExecutionContext", "execute_async_v3"),
    } <= names
    assert len(names) > 50
    gone = {"FP16", "INT8", "EXPLICIT_BATCH", "execute_async_v2", "device_memory_size", "supports_model"}
    assert not gone & {name for _, name in names}


@pytest.mark.parametrize(
    "doc", ["f(self: A, x: int, y: list[int, int] = [1, 2]) -> None", "f(x: int, y: A = (1, 2)) -> B"]
)
def test_signatures_are_read_as_they_stand(doc: str) -> None:
    assert numbers_of_arguments(doc) == [(1, 2)]


@pytest.mark.parametrize("version", [*VERSIONS, "rtx"])
def test_every_call_is_there(version: str) -> None:
    there, missing = surface(version), []
    for use in uses():
        if (use.owner, use.name) in RTX_ALONE and version != "rtx":
            continue
        # A logger's levels, and the methods of layers, are those of the class above.
        if use.name not in there.get(use.owner, {}):
            missing.append(f"{use.where}: {use.owner or 'the module'} has no {use.name}")
            continue
        if use.given is None:
            continue
        doc = there[use.owner][use.name] if use.owner else there[use.name].get("__init__", "")
        takes = numbers_of_arguments(doc)
        if takes and not any(fewest <= use.given <= most for fewest, most in takes):
            missing.append(
                f"{use.where}: {use.owner}.{use.name} takes {takes} values and is given {use.given}"
            )
    assert not missing


def test_a_name_that_went_away_is_noticed() -> None:
    """The method itself, on names that 11 removed."""
    old, new = surface("10.3.0"), surface("11.4.0.106")
    for owner, name in (("BuilderFlag", "FP16"), ("OnnxParser", "supports_model"), ("", "IInt8Calibrator")):
        assert name in old[owner] and name not in new[owner]
    assert numbers_of_arguments(new["IOptimizationProfile"]["set_shape"]) == [(4, 4)]
