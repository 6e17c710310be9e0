"""The engines a bundle is shipped with: built ahead of time, one per graph; what cannot be built is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mclst.runtime.bundle.bundle import ENCODER, SEQUENCE
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.encoder.tensorrt.build import EngineError, check_parses, covered
from mclst.runtime.encoder.tensorrt.engine_cache import graph_sha256, make_engine, this_platform
from mclst.runtime.encoder.tensorrt.library import Flavour, Library, load_library
from mclst.runtime.encoder.tensorrt.manifest import EngineKey
from mclst.runtime.errors import ResourceError

DEFAULT_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")
"""Of tensorrt-rtx: what it covers but Turing, whose cards take no float32 matrix product in it."""

MAX_BATCH = 64


@dataclass(frozen=True)
class EngineWishes:
    """Which engines to build.

    flavour: "tensorrt" or "tensorrt-rtx". max_batch: tiles at once, from 1. targets: of tensorrt-rtx, compute
    capabilities as "sm_86"; () for the default ones. workspace_bytes: the builder's limit. timing_cache: of tensorrt, a
    file that makes building again short. version_compatible, hardware_compatible: of tensorrt, engines for later
    versions with its lean runtime, and for all GPUs from Ampere on; both may be slower.
    """

    flavour: Flavour
    max_batch: int = MAX_BATCH
    targets: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False


class EngineBuilder:
    """What it takes to build engines on this machine."""

    def __init__(self, wishes: EngineWishes) -> None:
        """Raises ResourceError where the library, the device it builds on, or a target of it is missing."""
        self._wishes = wishes
        self._library: Library = load_library(wishes.flavour)
        self._gpu: Gpu | None = None
        self._targets: tuple[str, ...] = ()
        if wishes.flavour == "tensorrt":
            self._gpu = CudaDevice().gpu
            return
        known = covered(self._library)
        self._targets = wishes.targets or tuple(target for target in DEFAULT_TARGETS if target in known)
        for target in self._targets:
            if target not in known:
                raise ResourceError(
                    f"{self._library} builds for {', '.join(known)} and not for {target}; choose another --target"
                )

    def build(self, folder: Path, say: Callable[[str], None]) -> None:
        """An engine of every encoder in the bundle `folder`, under its `engines/`; `say` is told of each, or why not.

        Raises OutputError where something cannot be written.
        """
        name = self._gpu.name if self._gpu else ", ".join(self._targets)
        stem = ENCODER.removesuffix(".onnx")
        for onnx in sorted(folder.glob(f"{stem}*.onnx")):
            precision = onnx.name.removeprefix(stem).removesuffix(".onnx").lstrip(".") or "fp32"
            say(f"building the {precision} engine of {self._library} for {name}")
            try:
                engine = make_engine(
                    folder,
                    onnx,
                    self._key(onnx, precision),
                    self._library,
                    timing_cache=self._wishes.timing_cache,
                    kept=True,
                )
            except EngineError as error:
                say(
                    f"Note: {error}; there is no such engine in the bundle, and provider cuda or cpu serves it"
                )
                continue
            manifest = engine.manifest
            layers = ", ".join(f"{count} {kind}" for kind, count in sorted(manifest.layers.items()))
            say(f"{len(engine.plan) / 1e6:.1f} MB in {manifest.seconds:.0f} s; layers by type: {layers}")
        if (folder / SEQUENCE).is_file():
            say(f"Note: {self._about_sequence(folder / SEQUENCE)}")

    def _key(self, onnx: Path, precision: str) -> EngineKey:
        wishes = self._wishes
        return EngineKey(
            onnx_sha256=graph_sha256(onnx),
            precision=precision,
            flavour=self._library.flavour,
            version=self._library.version,
            max_batch=wishes.max_batch,
            targets=self._targets,
            gpu=self._gpu,
            workspace_bytes=wishes.workspace_bytes,
            version_compatible=wishes.version_compatible,
            hardware_compatible=wishes.hardware_compatible,
            platform=this_platform(),
        )

    def _about_sequence(self, onnx: Path) -> str:
        serves = "ONNX Runtime serves it, on cuda where it is and else on cpu"
        try:
            check_parses(self._library, onnx)
        except EngineError as error:
            return f"{error}; {serves}"
        return f"{onnx.name} runs once per slide and gets no engine; {serves}"
