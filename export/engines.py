"""Build TensorRT engines of a bundle ahead of time, one per encoder graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mclst.runtime.bundle.bundle import ENCODER, SLIDE_GRAPH
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.encoder.tensorrt.build import EngineError, check_parses, supported_targets
from mclst.runtime.encoder.tensorrt.engine_cache import graph_sha256, make_engine, this_platform
from mclst.runtime.encoder.tensorrt.library import Flavor, Library, load_library
from mclst.runtime.encoder.tensorrt.manifest import EngineKey
from mclst.runtime.errors import ResourceError

DEFAULT_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")
"""All that tensorrt-rtx covers but Turing, where it refuses float32 matrix products."""

MAX_BATCH = 64


@dataclass(frozen=True)
class EngineOptions:
    """Engines to build.

    Parameters
    ----------
    flavor : {"tensorrt", "tensorrt-rtx"}
    max_batch : int
        Largest batch of tiles.
    targets : tuple of str
        Compute capabilities for tensorrt-rtx, such as "sm_86"; () for DEFAULT_TARGETS.
    workspace_bytes : int, optional
        Memory limit of the builder.
    timing_cache : Path, optional
        File with tensorrt's kernel timings, which speeds up later builds.
    version_compatible : bool
        tensorrt only: engines for later versions with this version's lean runtime; may be slower.
    hardware_compatible : bool
        tensorrt only: engines for all GPUs from Ampere on; may be slower.
    """

    flavor: Flavor
    max_batch: int = MAX_BATCH
    targets: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


class EngineBuilder:
    """Builds engines on this machine."""

    def __init__(self, options: EngineOptions) -> None:
        """Raises ResourceError if the library, its GPU or a target is missing."""
        self._options = options
        self._library: Library = load_library(options.flavor)
        self._gpu: Gpu | None = None
        self._targets: tuple[str, ...] = ()
        if options.flavor == "tensorrt":
            self._gpu = CudaDevice().gpu
            return
        known = supported_targets(self._library)
        self._targets = options.targets or tuple(target for target in DEFAULT_TARGETS if target in known)
        for target in self._targets:
            if target not in known:
                raise ResourceError(
                    f"{self._library} builds for {', '.join(known)} and not for {target}; choose another "
                    "--target"
                )

    def build(self, folder: Path, say: Callable[[str], None]) -> None:
        """Build an engine of every encoder in the bundle `folder`, under its `engines/`.

        A refused graph is reported to `say` and skipped. Raises OutputError if an engine cannot be written.
        """
        device = self._gpu.name if self._gpu else ", ".join(self._targets)
        stem = ENCODER.removesuffix(".onnx")
        for graph in sorted(folder.glob(f"{stem}*.onnx")):
            precision = graph.name.removeprefix(stem).removesuffix(".onnx").lstrip(".") or "fp32"
            say(f"building the {precision} engine of {self._library} for {device}")
            try:
                engine = make_engine(
                    folder,
                    graph,
                    self._key(graph, precision),
                    self._library,
                    timing_cache=self._options.timing_cache,
                    must_store=True,
                )
            except EngineError as error:
                say(f"Note: {error}; the bundle gets no such engine, use provider cuda or cpu")
                continue
            manifest = engine.manifest
            layers = ", ".join(f"{count} {kind}" for kind, count in sorted(manifest.layers.items()))
            say(f"{len(engine.plan) / 1e6:.1f} MB in {manifest.seconds:.0f} s; layers by type: {layers}")
        if (folder / SLIDE_GRAPH).is_file():
            say(f"Note: {self._describe_slide_graph(folder / SLIDE_GRAPH)}")

    def _key(self, graph: Path, precision: str) -> EngineKey:
        options = self._options
        return EngineKey(
            onnx_sha256=graph_sha256(graph),
            precision=precision,
            flavor=self._library.flavor,
            version=self._library.version,
            max_batch=options.max_batch,
            targets=self._targets,
            gpu=self._gpu,
            workspace_bytes=options.workspace_bytes,
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware_compatible,
            platform=this_platform(),
        )

    def _describe_slide_graph(self, graph: Path) -> str:
        fallback = "ONNX Runtime runs it, on cuda if available and else on cpu"
        try:
            check_parses(self._library, graph)
        except EngineError as error:
            return f"{error}; {fallback}"
        return f"{graph.name} runs once per slide and gets no engine; {fallback}"
