"""ONNX graph → TensorRT engine, by one path for TensorRT 10 and 11 and for TensorRT-RTX."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclst.runtime.atomic import write_whole
from mclst.runtime.encoder.session import INPUT, OUTPUTS
from mclst.runtime.encoder.tensorrt.library import Library
from mclst.runtime.encoder.tensorrt.manifest import EngineKey
from mclst.runtime.errors import OutputError, ResourceError

_SHOWN = 240


class EngineError(ResourceError):
    """TensorRT does not make an engine of the graph; the graph itself runs elsewhere."""


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and what was seen of its network.

    plan: the serialized engine. output: its tensor's name. tile_px: side of the tiles. layers: how many layers give
    each type of number, by the names of TensorRT's DataType. seconds: the build took.
    """

    plan: bytes
    output: str
    tile_px: int
    layers: dict[str, int]
    seconds: float


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile.

    TensorRT calls the logger while it holds a lock of its own. A builder of earlier on that were freed there, its turn
    come by chance, would wait for that lock for ever.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@_uncollected()
def build_engine(
    library: Library, onnx: Path, key: EngineKey, *, timing_cache: Path | None = None
) -> BuiltEngine:
    """Build the engine that `key` describes from the graph `onnx`.

    The graph's own types hold (strong typing), and TF32 is off: what is float32 in the graph stays it. timing_cache: of
    tensorrt, read where it exists and written afterwards.
    Raises EngineError with TensorRT's own words where it refuses the graph or the build, OutputError where the timing
    cache cannot be written.
    """
    trt = library.trt
    started = time.perf_counter()
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, log, onnx, library)
    output, tile_px = _check_ends(trt, network, onnx)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if key.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, key.workspace_bytes)
    _set_targets(trt, config, key, library)
    _set_compatibility(trt, config, key)
    profile = builder.create_optimization_profile()
    most = (key.max_batch, tile_px, tile_px, 3)
    profile.set_shape(INPUT, (1, *most[1:]), most, most)
    if config.add_optimization_profile(profile) < 0:
        raise _refused(library, onnx, "it does not take the range of batches", log)
    cache = None if timing_cache is None else _timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refused(library, onnx, "it does not build it", log)
    if cache is not None and timing_cache is not None:
        write_whole(timing_cache, bytes(cache.serialize()))
    layers = Counter(_layer_type(network.get_layer(i)) for i in range(network.num_layers))
    return BuiltEngine(bytes(plan), output, tile_px, dict(layers), time.perf_counter() - started)


@_uncollected()
def check_parses(library: Library, onnx: Path) -> None:
    """Raise EngineError where the library's parser does not take the graph; builds nothing."""
    trt = library.trt
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, log, onnx, library)


def covered(library: Library) -> tuple[str, ...]:
    """Compute capabilities that tensorrt-rtx builds for, as `sm_86`, in order."""
    names = [name for name in library.trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"sm_{name[2:]}" for name in sorted(names, key=lambda name: int(name[2:])))


def _log(trt: Any) -> Any:
    """A logger that keeps what it is told: builder and parser return None, and the reason is only said there."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(msg)

    return Log()


def _parse(trt: Any, network: Any, log: Any, onnx: Path, library: Library) -> None:
    content = onnx.read_bytes()
    parser = trt.OnnxParser(network, log)
    # The path tells where weights lie that are not in the file. Of no bytes at all the parser says True.
    taken = parser.parse(content, str(onnx))
    if not taken or parser.num_errors or not network.num_layers:
        said = ["the file holds no layer"]
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            said.insert(index, f"{error.node_operator() or 'graph'}: {error.desc()}")
        raise _refused(library, onnx, f"its parser refuses it: {said[0]}", None)


def _check_ends(trt: Any, network: Any, onnx: Path) -> tuple[str, int]:
    """Name of the output and side of the tiles, of a graph from uint8 tiles to float32."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    shape = tuple(inputs[0].shape) if inputs else ()
    if (
        [(i.name, i.dtype) for i in inputs] != [(INPUT, trt.DataType.UINT8)]
        or len(shape) != 4
        or shape[0] != -1
        or shape[1] != shape[2]
        or shape[3] != 3
        or len(outputs) != 1
        or outputs[0].name not in OUTPUTS
        or outputs[0].dtype != trt.DataType.FLOAT
    ):
        raise EngineError(
            f"{onnx} is not an encoder from uint8 {INPUT!r} to float32 {' or '.join(OUTPUTS)}; export the bundle again"
        )
    return outputs[0].name, int(shape[1])


def _set_targets(trt: Any, config: Any, key: EngineKey, library: Library) -> None:
    if key.flavour != "tensorrt-rtx":
        return
    known = covered(library)
    for target in key.targets:
        if target not in known:
            raise EngineError(f"{library} does not build for {target}, only for {', '.join(known)}")
    config.num_compute_capabilities = len(key.targets)
    for index, target in enumerate(key.targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target[3:]}"), index)


def _set_compatibility(trt: Any, config: Any, key: EngineKey) -> None:
    if key.version_compatible:
        # Without the runtime inside, an engine holds no code for the host.
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if key.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _timing_cache(config: Any, path: Path) -> Any:
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError as refused:
        raise OutputError(
            f"{path} cannot be read ({refused.strerror}); choose another --timing-cache"
        ) from refused
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            f"{path} is not a timing cache of this TensorRT and this GPU; choose another --timing-cache"
        )
    return cache


def _layer_type(layer: Any) -> str:
    return str(layer.get_output(0).dtype).rsplit(".", 1)[-1]


def _refused(library: Library, onnx: Path, what: str, log: Any) -> EngineError:
    said = what
    if log is not None and log.errors:
        said += f": {log.errors[-1]}"
    return EngineError(f"{library} makes no engine of {onnx.name}, {' '.join(said.split())[:_SHOWN]}")
