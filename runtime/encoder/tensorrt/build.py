"""Build TensorRT engines from ONNX graphs, with TensorRT 10, 11 and TensorRT-RTX."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclst.runtime.atomic import write_atomically
from mclst.runtime.encoder.session import INPUT, OUTPUTS
from mclst.runtime.encoder.tensorrt.library import Library
from mclst.runtime.encoder.tensorrt.manifest import EngineKey
from mclst.runtime.errors import OutputError, ResourceError
from mclst.runtime.resources import gc_disabled

_MAX_REASON = 240
SMALL_BATCH = 8
"""Up to here a batch has a profile of its own: kernels for full batches are slow for a few tiles."""


class EngineError(ResourceError):
    """TensorRT cannot build an engine of the graph; other providers can still run it."""


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine and facts about its network.

    Attributes
    ----------
    plan : bytes
        The serialized engine.
    output : str
        Name of the output tensor.
    tile_px : int
        Side of the input tiles.
    layers : dict
        Number of layers by output type, named as in TensorRT's DataType.
    seconds : float
        Build time.
    """

    plan: bytes
    output: str
    tile_px: int
    layers: dict[str, int]
    seconds: float


# TensorRT calls our logger while it holds an internal lock. If the collector ran there and freed an older
# builder, that would wait for the same lock: a deadlock.
@gc_disabled()
def build_engine(
    library: Library, onnx: Path, key: EngineKey, *, timing_cache: Path | None = None
) -> BuiltEngine:
    """Build an engine from an ONNX graph.

    Parameters
    ----------
    library : Library
    onnx : Path
        The graph. Its types are kept (strong typing, no TF32).
    key : EngineKey
        What to build the engine for.
    timing_cache : Path, optional
        Read if it exists, and written afterwards.

    Returns
    -------
    BuiltEngine

    Raises
    ------
    EngineError
        With TensorRT's message, if it rejects the graph or the build fails.
    OutputError
        If the timing cache cannot be read or written.
    """
    trt = library.trt
    started = time.perf_counter()
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, onnx, library)
    output, tile_px = _check_signature(trt, network, onnx)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if key.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, key.workspace_bytes)
    _set_targets(trt, config, key, library)
    _set_compatibility(trt, config, key)
    for optimal, most in batch_ranges(key):
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *((n, tile_px, tile_px, 3) for n in (1, optimal, most)))
        if config.add_optimization_profile(profile) < 0:
            raise _failure(library, onnx, "it does not take the range of batches", logger)
    cache = None if timing_cache is None else _timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _failure(library, onnx, "it does not build it", logger)
    if cache is not None and timing_cache is not None:
        write_atomically(timing_cache, bytes(cache.serialize()))
    layers = Counter(_layer_type(network.get_layer(i)) for i in range(network.num_layers))
    return BuiltEngine(bytes(plan), output, tile_px, dict(layers), time.perf_counter() - started)


@gc_disabled()
def check_parses(library: Library, onnx: Path) -> None:
    """Parse the graph without building; EngineError if the parser rejects it."""
    trt = library.trt
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, onnx, library)


def batch_ranges(key: EngineKey) -> list[tuple[int, int]]:
    """Batch to optimize for and largest batch of each profile: full batches first, then a few tiles.

    TensorRT-RTX specializes kernels to the shapes it meets, so it needs no second profile.
    """
    full = [(key.max_batch, key.max_batch)]
    small = key.flavor == "tensorrt" and key.max_batch > SMALL_BATCH
    return [*full, (1, SMALL_BATCH)] if small else full


def supported_targets(library: Library) -> tuple[str, ...]:
    """Compute capabilities that tensorrt-rtx builds for, such as `sm_86`, sorted."""
    names = [name for name in library.trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"sm_{name[2:]}" for name in sorted(names, key=lambda name: int(name[2:])))


def _make_logger(trt: Any) -> Any:
    """A logger that keeps errors: builder and parser return None on failure and only log the reason."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(msg)

    return Logger()


def _parse(trt: Any, network: Any, logger: Any, onnx: Path, library: Library) -> None:
    content = onnx.read_bytes()
    parser = trt.OnnxParser(network, logger)
    # The parser finds external weights relative to the path. It returns True for an empty file.
    parsed = parser.parse(content, str(onnx))
    if not parsed or parser.num_errors or not network.num_layers:
        reason = "the file holds no layer"
        if parser.num_errors:
            error = parser.get_error(0)
            reason = f"{error.node_operator() or 'graph'}: {error.desc()}"
        raise _failure(library, onnx, f"its parser refuses it: {reason}", None)


def _check_signature(trt: Any, network: Any, onnx: Path) -> tuple[str, int]:
    """Output name and tile side; EngineError unless the graph maps uint8 tiles to float32."""
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
            f"{onnx} is not an encoder from uint8 {INPUT!r} to float32 {' or '.join(OUTPUTS)}; "
            "export the bundle again"
        )
    return outputs[0].name, int(shape[1])


def _set_targets(trt: Any, config: Any, key: EngineKey, library: Library) -> None:
    if key.flavor != "tensorrt-rtx":
        return
    supported = supported_targets(library)
    for target in key.targets:
        if target not in supported:
            raise EngineError(f"{library} does not build for {target}, only for {', '.join(supported)}")
    config.num_compute_capabilities = len(key.targets)
    for index, target in enumerate(key.targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target[3:]}"), index)


def _set_compatibility(trt: Any, config: Any, key: EngineKey) -> None:
    if key.version_compatible:
        # Leave out the lean runtime: engines then contain no host code.
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if key.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _timing_cache(config: Any, path: Path) -> Any:
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise OutputError(
            f"{path} cannot be read ({error.strerror}); choose another --timing-cache"
        ) from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise EngineError(
            f"{path} is not a timing cache of this TensorRT and this GPU; choose another --timing-cache"
        )
    return cache


def _layer_type(layer: Any) -> str:
    return str(layer.get_output(0).dtype).rsplit(".", 1)[-1]


def _failure(library: Library, onnx: Path, reason: str, logger: Any) -> EngineError:
    if logger is not None and logger.errors:
        reason += f": {logger.errors[-1]}"
    return EngineError(f"{library} makes no engine of {onnx.name}, {' '.join(reason.split())[:_MAX_REASON]}")
