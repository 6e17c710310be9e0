"""The engines of a bundle: found by what they were built from, checked by hash, rebuilt where anything differs."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mclst.runtime.atomic import WholeFolder
from mclst.runtime.bundle.manifest import ENGINES, FileRecord
from mclst.runtime.encoder.cuda.gpu import Gpu
from mclst.runtime.encoder.tensorrt.build import build_engine, covered
from mclst.runtime.encoder.tensorrt.library import Library, lean_library
from mclst.runtime.encoder.tensorrt.manifest import (
    ENGINE_MANIFEST,
    PLAN,
    EngineKey,
    EngineManifest,
    read_engine_manifest,
)
from mclst.runtime.errors import OutputError, ResourceError

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Engine:
    """An engine whose bytes are those that were built. plan: these. path: of its folder."""

    path: Path
    manifest: EngineManifest
    plan: bytes


@dataclass(frozen=True)
class EngineRequest:
    """What an engine must be for: a graph of a precision, a library, a device and a number of tiles at once."""

    onnx: Path
    precision: str
    library: Library
    gpu: Gpu
    batch: int

    def key(self) -> EngineKey:
        """Of the engine that is built where none fits."""
        rtx = self.library.flavour == "tensorrt-rtx"
        return EngineKey(
            onnx_sha256=graph_sha256(self.onnx),
            precision=self.precision,
            flavour=self.library.flavour,
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
    """SHA-256 of a graph and, where its weights lie beside it, of these."""
    digest = hashlib.sha256()
    for path in (onnx, onnx.with_name(f"{onnx.name}.data")):
        if path == onnx or path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def open_engine(bundle: Path, wanted: EngineRequest, *, build: bool, tell: Tell) -> Engine:
    """The engine of `bundle` that fits, else one built now and kept there.

    Where one is built, `tell` is given one line that says why. An engine that cannot be kept is used all the same.
    Raises ResourceError where none fits and `build` is False, EngineError where TensorRT makes none of the graph.
    """
    found, why = find_engine(bundle, wanted)
    if found is not None:
        return found
    reason = why or "there is none yet"
    if not build:
        raise ResourceError(
            f"{bundle} has no engine of {wanted.library} for {wanted.gpu.name}: {reason}; leave --no-build out"
        )
    tell(
        f"building an engine of {wanted.library} for {wanted.gpu.name}, since {reason}; this can take minutes"
    )
    return make_engine(bundle, wanted.onnx, wanted.key(), wanted.library, tell=tell)


def find_engine(bundle: Path, wanted: EngineRequest) -> tuple[Engine | None, str]:
    """An engine that fits; else None and why the nearest does not, "" where there is none of the kind."""
    reasons: list[str] = []
    onnx_sha256 = graph_sha256(wanted.onnx)
    for folder in _folders(bundle):
        try:
            manifest = read_engine_manifest(folder / ENGINE_MANIFEST)
            why = _misfit(manifest.key, wanted, onnx_sha256)
            if why is None:
                return Engine(folder, manifest, _plan(folder, manifest.plan)), ""
            reason = why
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
    kept: bool = False,
    tell: Tell = lambda text: None,
) -> Engine:
    """Build the engine of `key` and keep it in `bundle`.

    Where it cannot be kept `tell` is given a line or, where `kept` asks for it, OutputError is raised.
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
        _keep(folder, manifest, built.plan)
    except OutputError as error:
        if kept:
            raise
        tell(f"the engine is used but not kept: {error}")
    return Engine(folder, manifest, built.plan)


def check_target(library: Library, gpu: Gpu) -> None:
    """Raise ResourceError where tensorrt-rtx does not build for the device."""
    if library.flavour == "tensorrt-rtx" and gpu.target not in covered(library):
        raise ResourceError(
            f"{library} does not cover {gpu.name} ({gpu.target}), only {', '.join(covered(library))}; "
            "use --provider tensorrt or cuda"
        )


def _folders(bundle: Path) -> list[Path]:
    """The newest first."""
    try:
        found = [path for path in (bundle / ENGINES).iterdir() if path.is_dir() and not path.is_symlink()]
        return sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path.name))
    except OSError:
        return []


def _misfit(key: EngineKey, wanted: EngineRequest, onnx_sha256: str) -> str | None:
    """Why the engine of `key` does not fit, "" where it is another kind of engine altogether, None where it fits."""
    library, gpu = wanted.library, wanted.gpu
    if key.flavour != library.flavour or key.precision != wanted.precision:
        return ""
    if key.onnx_sha256 != onnx_sha256:
        return "it was built from another graph"
    if key.platform != this_platform():
        return f"it was built for {key.platform} and this is {this_platform()}"
    if key.version != library.version and not _outlives(key, library):
        return f"it was built by {key.flavour} {key.version} and here is {library.version}"
    if key.flavour == "tensorrt-rtx" and gpu.target not in key.targets:
        return f"it was built for {', '.join(key.targets)} and this device is {gpu.target}"
    if key.gpu is not None and not _runs_on(key, gpu):
        if key.gpu.name != gpu.name or key.gpu.compute_capability != gpu.compute_capability:
            return f"it was built on {key.gpu.name} ({key.gpu.target}) and this is {gpu.name} ({gpu.target})"
        return f"it was built under driver {key.gpu.driver} and here is {gpu.driver}"
    if key.max_batch < wanted.batch:
        return f"it takes up to {key.max_batch} tiles at once and {wanted.batch} are wanted"
    return None


def _outlives(key: EngineKey, library: Library) -> bool:
    """Whether an engine built by an older version runs here: built for that, and its lean runtime is installed."""
    if not key.version_compatible or key.flavour != "tensorrt":
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


def _plan(folder: Path, record: FileRecord) -> bytes:
    """The engine's bytes, read once and hashed before anything looks at them; ValueError where they are others."""
    handle = os.open(folder / PLAN, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"its {PLAN} is not a plain file")
        if status.st_mode & stat.S_IWOTH:
            raise ValueError(f"anyone may write its {PLAN}, which is code")
        if status.st_size != record.bytes:
            raise ValueError(f"its {PLAN} has {status.st_size} bytes and {record.bytes} were written")
        content = file.read()
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise ValueError(f"its {PLAN} is not what was built (SHA-256 differs)")
    return content


def _keep(folder: Path, manifest: EngineManifest, plan: bytes) -> None:
    """Write an engine's folder, whole; a damaged one of that name is replaced."""
    try:
        folder.parent.mkdir(mode=0o755, exist_ok=True)
        if folder.is_symlink() or (folder.exists() and not (folder / ENGINE_MANIFEST).is_file()):
            folder.unlink() if not folder.is_dir() or folder.is_symlink() else shutil.rmtree(folder)
        with WholeFolder(folder, mark=ENGINE_MANIFEST, overwrite=True) as draft:
            for name, content in ((PLAN, plan), (ENGINE_MANIFEST, _text(manifest))):
                handle = os.open(draft.part / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(handle)
            draft.publish()
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror or error})") from error


def _text(manifest: EngineManifest) -> bytes:
    return (manifest.model_dump_json(indent=2) + "\n").encode()
