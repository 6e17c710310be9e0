"""TensorRT in the ring: a verified engine, one execution context, replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.session import DeviceSession
from mclst.runtime.encoder.session import INPUT
from mclst.runtime.encoder.tensorrt.engine_cache import Engine
from mclst.runtime.encoder.tensorrt.library import Library, lean_library
from mclst.runtime.encoder.tensorrt.manifest import EngineManifest
from mclst.runtime.errors import ResourceError


class TensorRTRunner:
    """A `Runner` with an execution context for a fixed batch.

    Tiles are copied on the device into the context's own input, so that shape and address of a captured graph
    never change. TensorRT-RTX captures graphs itself.
    """

    stream = None

    def __init__(
        self, library: Library, device: CudaDevice, engine: Any, manifest: EngineManifest, batch: int
    ) -> None:
        """Raises ResourceError if the engine does not take `batch` tiles."""
        self.batch = batch
        self._library, self._device, self._manifest = library, device, manifest
        self._graph: Any = None
        self._memory: list[int] = []
        with device.current():
            self._context = _context(library, engine)
        self._profile = narrowest_profile(engine, batch)
        if self._context is None or self._profile is None:
            raise self._refused()
        tile_px = manifest.tile_px
        self._tile_bytes = batch * tile_px * tile_px * 3

    def prepare(self, stream: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """See `Runner`. Runs once, which lets TensorRT initialize, before the capture."""
        device, context = self._device, self._context
        self._stream, self._inputs, self._outputs = stream, inputs, outputs
        tile_px = self._manifest.tile_px
        with device.current():
            # A context begins with profile 0.
            if (
                not (self._profile == 0 or context.set_optimization_profile_async(self._profile, stream))
                or not context.set_input_shape(INPUT, (self.batch, tile_px, tile_px, 3))
                or context.infer_shapes()
            ):
                raise self._refused()
        width = tuple(context.get_tensor_shape(self._manifest.output))[-1]
        self._row_bytes = self.batch * 4 * int(width)
        for nbytes in (self._tile_bytes, self._row_bytes):
            self._memory.append(device.allocate(nbytes))
        self._input, self._output = self._memory
        device.zero(self._input, self._tile_bytes, stream)
        context.set_tensor_address(INPUT, self._input)
        context.set_tensor_address(self._manifest.output, self._output)
        self._execute()
        if self._library.flavor == "tensorrt":
            self._graph = device.capture(stream, self._execute)

    def enqueue(self, slot: int) -> None:
        """See `Runner`."""
        device, stream = self._device, self._stream
        device.copy_on_device(self._input, self._inputs[slot], self._tile_bytes, stream)
        if self._graph is None:
            self._execute()
        else:
            device.replay(self._graph, stream)
        device.copy_on_device(self._outputs[slot], self._output, self._row_bytes, stream)

    def close(self) -> None:
        """See `Runner`."""
        if self._graph is not None:
            self._device.destroy_graph(self._graph)
        self._context = None
        for address in self._memory:
            self._device.free(address)

    def _refused(self) -> ResourceError:
        return ResourceError(
            f"the engine of {self._library} does not take {self.batch} tiles of {self._manifest.tile_px} px "
            "at once; give a smaller --batch-size"
        )

    def _execute(self) -> None:
        with self._device.current():
            if not self._context.execute_async_v3(self._stream):
                raise ResourceError(
                    f"{self._library} could not run its engine; "
                    "give a smaller --batch-size or use --provider cuda"
                )


def open_tensorrt(library: Library, device: CudaDevice, engine: Engine) -> DeviceSession:
    """Open a verified engine on `device`; ResourceError if TensorRT rejects it."""
    runtime, cuda_engine = _deserialize(library, device, engine)
    manifest = engine.manifest
    width = tuple(cuda_engine.get_tensor_shape(manifest.output))[-1]
    tile_px = manifest.tile_px
    return DeviceSession(
        device,
        # The default argument keeps the runtime alive as long as its engine.
        lambda batch, runtime=runtime: TensorRTRunner(library, device, cuda_engine, manifest, batch),  # type: ignore[misc]
        provider=library.flavor,
        engine=f"{library}, engine {manifest.plan.sha256[:16]}",
        tile=(tile_px, tile_px, 3),
        width=int(width),
    )


def _deserialize(library: Library, device: CudaDevice, engine: Engine) -> tuple[Any, Any]:
    trt = library.trt
    with device.current():
        # Only with a device: without one, the constructor ends the process.
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        key = engine.manifest.key
        if key.version_compatible and key.version != library.version:
            runtime = runtime.load_runtime(str(lean_library(key.version)))
        cuda_engine = None if runtime is None else runtime.deserialize_cuda_engine(engine.plan)
    if cuda_engine is None:
        raise ResourceError(
            f"{library} refuses {engine.path}, whose bytes are right; remove it and run again"
        )
    names = [cuda_engine.get_tensor_name(i) for i in range(cuda_engine.num_io_tensors)]
    dtypes = {name: cuda_engine.get_tensor_dtype(name) for name in names}
    if dtypes != {INPUT: trt.DataType.UINT8, engine.manifest.output: trt.DataType.FLOAT}:
        raise ResourceError(f"{engine.path} is not an encoder's engine; remove it and run again")
    return runtime, cuda_engine


def narrowest_profile(engine: Any, batch: int) -> int | None:
    """The engine's profile with the smallest range that takes `batch` tiles; None if none does."""
    most = [engine.get_tensor_profile_shape(INPUT, i)[2][0] for i in range(engine.num_optimization_profiles)]
    fitting = [index for index, largest in enumerate(most) if largest >= batch]
    return min(fitting, key=lambda index: most[index], default=None)


def _context(library: Library, engine: Any) -> Any:
    if library.flavor == "tensorrt":
        return engine.create_execution_context()
    trt = library.trt
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    # The default compiles in the background and then switches kernels, which changes the last digits.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)
