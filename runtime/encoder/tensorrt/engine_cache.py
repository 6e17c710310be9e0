"""The engines of a bundle: looked up by their key, verified by hash, rebuilt if anything differs."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mclst.kernels.definition.user_cache import others_may_write
from mclst.runtime.atomic import AtomicFolder
from mclst.runtime.bundle.manifest import ENGINES, FileRecord
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.encoder.tensorrt.build import build_engine, supported_targets
from mclst.runtime.encoder.tensorrt.library import Library, lean_library
from mclst.runtime.encoder.tensorrt.manifest import (
    ENGINE_MANIFEST,
    PLAN,
    EngineKey,
    EngineManifest,
    read_engine_manifest,
)
from mclst.runtime.errors import OutputError, ResourceError, write_error

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Engine:
    """An engine whose bytes were verified. path: its folder. plan: the bytes."""

    path: Path
    manifest: EngineManifest
    plan: bytes


@dataclass(frozen=True)
class EngineRequest:
    """What an engine must fit: graph, precision, library, device, and tiles per batch."""

    onnx: Path
    precision: str
    library: Library
    gpu: Gpu
    batch: int

    def key(self) -> EngineKey:
        """The key of an engine built for this request."""
        rtx = self.library.flavor == "tensorrt-rtx"
        return EngineKey(
            onnx_sha256=graph_sha256(self.onnx),
            precision=self.precision,
            flavor=self.library.flavor,
            version=self.library.version,
            max_batch=self.batch,
            targets=(self.gpu.target,) if rtx else (),
            gpu=None if rtx else self.gpu,
            platform=this_platform(),
        )


def this_platform() -> str:
    """System and processor, such as `linux-x86_64`."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def graph_sha256(onnx: Path) -> str:
    """SHA-256 of a graph and its external weights, if any."""
    digest = hashlib.sha256()
    for path in (onnx, onnx.with_name(f"{onnx.name}.data")):
        if path == onnx or path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def open_engine(bundle: Path, request: EngineRequest, *, build: bool, notify: Notify) -> Engine:
    """Open the engine of `bundle` that fits, else build one and store it there.

    Parameters
    ----------
    bundle : Path
    request : EngineRequest
    build : bool
        Whether an engine may be built.
    notify : callable
        Receives one line that says why an engine is built, and one if it cannot be stored.

    Returns
    -------
    Engine

    Raises
    ------
    ResourceError
        If no engine fits and `build` is False.
    EngineError
        If TensorRT cannot build an engine of the graph.
    """
    engine, reason = find_engine(bundle, request)
    if engine is not None:
        return engine
    reason = reason or "there is none yet"
    target = f"{request.library} for {request.gpu.name}"
    if not build:
        raise ResourceError(f"{bundle} has no engine of {target}: {reason}; leave --no-build out")
    notify(f"building an engine of {target}, since {reason}; this can take minutes")
    return make_engine(bundle, request.onnx, request.key(), request.library, notify=notify)


def find_engine(bundle: Path, request: EngineRequest) -> tuple[Engine | None, str]:
    """The engine that fits; else None and why the newest of its kind does not, "" if there is none."""
    reasons: list[str] = []
    onnx_sha256 = graph_sha256(request.onnx)
    for folder in _folders(bundle):
        try:
            manifest = read_engine_manifest(folder / ENGINE_MANIFEST)
            reason = _misfit(manifest.key, request, onnx_sha256)
            if reason is None:
                return Engine(folder, manifest, _read_plan(folder, manifest.plan)), ""
        except OSError as error:
            reason = f"its files cannot be read ({error.strerror or error})"
        except ValueError as error:
            reason = str(error)
        if reason:
            reasons.append(f"{ENGINES}/{folder.name} is not used: {reason}")
    return None, reasons[0] if reasons else ""


def make_engine(
    bundle: Path,
    onnx: Path,
    key: EngineKey,
    library: Library,
    *,
    timing_cache: Path | None = None,
    must_store: bool = False,
    notify: Notify = lambda text: None,
) -> Engine:
    """Build the engine of `key` and store it in `bundle`.

    If it cannot be stored, `notify` receives a line, or OutputError is raised with `must_store`.
    Raises EngineError and OutputError as `build_engine` does.
    """
    built = build_engine(library, onnx, key, timing_cache=timing_cache)
    manifest = EngineManifest(
        format="mclst-engine/1",
        key=key,
        output=built.output,
        tile_px=built.tile_px,
        layers=built.layers,
        plan=FileRecord(bytes=len(built.plan), sha256=hashlib.sha256(built.plan).hexdigest()),
        seconds=round(built.seconds, 2),
    )
    folder = bundle / ENGINES / key.folder
    try:
        _store(folder, manifest, built.plan)
    except OutputError as error:
        if must_store:
            raise
        notify(f"the engine is used but not kept: {error}")
    return Engine(folder, manifest, built.plan)


def check_target(library: Library, gpu: Gpu) -> None:
    """Raise ResourceError if tensorrt-rtx does not build for the device."""
    if library.flavor == "tensorrt-rtx" and gpu.target not in supported_targets(library):
        raise ResourceError(
            f"{library} does not cover {gpu.name} ({gpu.target}), "
            f"only {', '.join(supported_targets(library))}; use --provider tensorrt or cuda"
        )


def _folders(bundle: Path) -> list[Path]:
    """Engine folders, newest first."""
    try:
        folders = [path for path in (bundle / ENGINES).iterdir() if path.is_dir() and not path.is_symlink()]
        return sorted(folders, key=lambda path: (-path.stat().st_mtime_ns, path.name))
    except OSError:
        return []


def _misfit(key: EngineKey, request: EngineRequest, onnx_sha256: str) -> str | None:
    """Why the engine of `key` does not fit; "" if it is of another kind, None if it fits."""
    library, gpu = request.library, request.gpu
    if key.flavor != library.flavor or key.precision != request.precision:
        return ""
    if key.onnx_sha256 != onnx_sha256:
        return "it was built from another graph"
    if key.platform != this_platform():
        return f"it was built for {key.platform} and this is {this_platform()}"
    if key.version != library.version and not _loads_newer(key, library):
        return f"it was built by {key.flavor} {key.version} and here is {library.version}"
    if key.flavor == "tensorrt-rtx" and gpu.target not in key.targets:
        return f"it was built for {', '.join(key.targets)} and this device is {gpu.target}"
    if key.gpu is not None and not _runs_on(key, gpu):
        if key.gpu.name != gpu.name or key.gpu.compute_capability != gpu.compute_capability:
            return f"it was built on {key.gpu.name} ({key.gpu.target}) and this is {gpu.name} ({gpu.target})"
        return f"it was built under driver {key.gpu.driver} and here is {gpu.driver}"
    if key.max_batch < request.batch:
        return f"it takes up to {key.max_batch} tiles at once and {request.batch} are needed"
    return None


def _loads_newer(key: EngineKey, library: Library) -> bool:
    """Whether an engine of an older version runs: version-compatible, and its lean runtime is installed."""
    if not key.version_compatible or key.flavor != "tensorrt":
        return False
    try:
        lean_library(key.version)
    except ResourceError:
        return False
    return [int(n) for n in key.version.split(".")] < [int(n) for n in library.version.split(".")]


def _runs_on(key: EngineKey, gpu: Gpu) -> bool:
    if key.hardware_compatible:
        return float(gpu.compute_capability) >= 8.0
    return key.gpu == gpu


def _read_plan(folder: Path, record: FileRecord) -> bytes:
    """Read an engine's bytes; ValueError if others may have written them or their hash differs."""
    trusted = {0, os.geteuid()}
    if reason := others_may_write(folder.stat(), trusted):
        raise ValueError(f"its folder {reason}, and an engine is code")
    handle = os.open(folder / PLAN, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"its {PLAN} is not a plain file")
        if reason := others_may_write(status, trusted):
            raise ValueError(f"its {PLAN} {reason}, and an engine is code")
        if status.st_size != record.bytes:
            raise ValueError(f"its {PLAN} has {status.st_size} bytes and {record.bytes} were written")
        content = file.read()
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise ValueError(f"its {PLAN} is not what was built (SHA-256 differs)")
    return content


def _store(folder: Path, manifest: EngineManifest, plan: bytes) -> None:
    """Write an engine's folder atomically; a damaged one is replaced."""
    text = manifest.model_dump_json(indent=2) + "\n"
    try:
        folder.parent.mkdir(mode=0o755, exist_ok=True)
        if folder.is_symlink() or (folder.exists() and not (folder / ENGINE_MANIFEST).is_file()):
            folder.unlink() if not folder.is_dir() or folder.is_symlink() else shutil.rmtree(folder)
        with AtomicFolder(folder, mark=ENGINE_MANIFEST, overwrite=True) as draft:
            # Under umask 002 the group could write it, and the next run would not trust it.
            draft.part.chmod(draft.part.stat().st_mode & 0o755)
            for name, content in ((PLAN, plan), (ENGINE_MANIFEST, text.encode())):
                handle = os.open(draft.part / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(handle)
            draft.publish()
    except OSError as error:
        raise write_error(folder, error) from error
