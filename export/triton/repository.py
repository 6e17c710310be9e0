"""Bundle → model repository for NVIDIA Triton: tiles in, expression out. `mclst-export --triton`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mclst.export.triton.config import (
    Message,
    direct_config,
    encoder_config,
    ensemble_config,
    manifest_config,
    pbtxt,
    retrieval_config,
)
from mclst.runtime.atomic import WholeFolder, write_whole
from mclst.runtime.bundle.bundle import BANK, Bundle
from mclst.runtime.bundle.manifest import FileRecord
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.onnxruntime_cpu import check_encoder, open_graph
from mclst.runtime.encoder.tensorrt.engine_cache import Engine, EngineRequest, find_engine
from mclst.runtime.encoder.tensorrt.library import load_library
from mclst.runtime.errors import BundleError, OutputError, ResourceError
from mclst.runtime.hashing import file_sha256
from mclst.runtime.serving.server_manifest import Served, ServedBundle, check_servable, inner_model
from mclst.runtime.serving.triton_models import DOCUMENT, VERSION
from mclst.runtime.versions import installed_versions

MODEL = '"""Run by Triton\'s Python backend; the code is mclst\'s, installed there."""\n\n'


@dataclass(frozen=True)
class Serving:
    """How a bundle is served.

    name: the model a client asks for, and the beginning of the others' names. precision: of the encoder. max_batch:
    tiles that go through it at once, at most. tensorrt: serve the bundle's TensorRT engine for this machine's GPU in
    place of the graph.
    """

    name: str = "mclst"
    precision: str = "fp32"
    max_batch: int = 64
    tensorrt: bool = False


def write_repository(
    bundle: Bundle,
    path: str | Path,
    how: Serving | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the repository of `bundle` to the folder `path`, whole or not at all; returns `path`.

    Raises InputError where the bundle cannot be served, BundleError where its graph does not fit its manifest,
    ResourceError where there is no such engine or no ONNX Runtime, OutputError.
    """
    how, path = how or Serving(), Path(path)
    manifest = bundle.manifest
    check_servable(manifest.kind, f"{bundle.path} is a bundle of {manifest.system}")
    output = _encoder_output(bundle, how.precision)
    engine = _engine(bundle, how) if how.tensorrt else None
    with WholeFolder(path, mark=_mark(how.name), overwrite=overwrite, option="--triton") as draft:
        try:
            say(f"writing the models of {how.name}")
            copies = _copy(draft.part, bundle, how, engine)
            served = _served(bundle, how, engine, draft.part)
            for copy, name in copies.items():
                if served.files[copy] != manifest.files[name]:
                    raise BundleError(f"{bundle.path / name} changed while it was being read; run again")
            second = "retrieval" if manifest.kind == "retrieval" else "direct"
            _write_model(draft.part, served, second)
            _write_model(draft.part, served, "manifest")
            (draft.part / how.name / VERSION).mkdir(parents=True)
            _write_config(draft.part, ensemble_config(served, output))
            _write_config(draft.part, encoder_config(served, output))
            write_whole(draft.part / _mark(how.name), (served.model_dump_json(indent=2) + "\n").encode())
            draft.publish()
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror or error}); free space or choose another --triton"
            ) from error
    return path


def _mark(name: str) -> str:
    """The file by which a repository of this name is known."""
    return f"{inner_model(name, 'manifest')}/{VERSION}/{DOCUMENT}"


def _encoder_output(bundle: Bundle, precision: str) -> str:
    """The graph's own name of its output, once ONNX Runtime has found it to be what the manifest says."""
    path = bundle.encoder(precision)
    output, tile, width = check_encoder(open_graph(path, "cpu"), path)
    size_px, said = bundle.manifest.tile.size_px, bundle.manifest.encoder.embedding_dim
    if (tile, width) != ((size_px, size_px, 3), said):
        raise BundleError(
            f"{path} takes tiles of {tile} and gives {width} values, and the manifest says {size_px} px and {said}; "
            "export the bundle again"
        )
    return output


def _engine(bundle: Bundle, how: Serving) -> Engine:
    wanted = EngineRequest(
        bundle.encoder(how.precision),
        how.precision,
        load_library("tensorrt"),
        CudaDevice().gpu,
        how.max_batch,
    )
    found, why = find_engine(bundle.path, wanted)
    if found is None:
        raise ResourceError(
            f"{bundle.path} has no {how.precision} engine of {wanted.library} for {wanted.gpu.name}: "
            f"{why or 'there is none yet'}; export with --engine tensorrt on this machine"
        )
    return found


def _copy(repository: Path, bundle: Bundle, how: Serving, engine: Engine | None) -> dict[str, str]:
    """Put graph or engine, and bank, into place; copies of the bundle's files by their path → their name there."""
    encoder = _version(repository, how.name, "encoder")
    copies: dict[Path, str] = {}
    if engine is not None:
        (encoder / "model.plan").write_bytes(engine.plan)
    else:
        onnx = bundle.encoder(how.precision)
        copies[encoder / "model.onnx"] = onnx.name
        weights = f"{onnx.name}.data"
        if weights in bundle.manifest.files:
            copies[encoder / weights] = weights  # the graph knows them by this name
    if bundle.manifest.kind == "retrieval":
        copies[_version(repository, how.name, "retrieval") / BANK] = BANK
    for copy, name in copies.items():
        shutil.copyfile(bundle.path / name, copy)
    return {copy.relative_to(repository).as_posix(): name for copy, name in copies.items()}


def _write_model(repository: Path, served: Served, part: str) -> None:
    """A model of the Python backend: its config, and a `model.py` that names the class."""
    configs = {"retrieval": retrieval_config, "direct": direct_config, "manifest": manifest_config}
    folder = _version(repository, served.name, part)
    text = (
        f"{MODEL}from mclst.runtime.serving.triton_models import {part.title()}Model as TritonPythonModel\n"
    )
    (folder / "model.py").write_text(text, encoding="utf-8")
    _write_config(repository, configs[part](served))


def _write_config(repository: Path, config: Message) -> None:
    (repository / config["name"] / "config.pbtxt").write_text(pbtxt(config), encoding="utf-8")


def _version(repository: Path, name: str, part: str) -> Path:
    folder = repository / inner_model(name, part) / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _served(bundle: Bundle, how: Serving, engine: Engine | None, repository: Path) -> Served:
    """The document, with the hash of what stands in the repository so far: graph or engine, and bank."""
    files = {
        file.relative_to(repository).as_posix(): FileRecord(
            bytes=file.stat().st_size, sha256=file_sha256(file)
        )
        for file in sorted(repository.rglob("*"))
        if file.is_file()
    }
    return Served.model_validate(
        {
            "format": "mclst-server/1",
            "name": how.name,
            "bundle": ServedBundle(sha256=bundle.sha256, manifest=bundle.manifest),
            "genes": tuple(bundle.genes),
            "precision": how.precision,
            "max_batch": how.max_batch,
            "backend": "onnxruntime" if engine is None else "tensorrt",
            "files": files,
            "versions": installed_versions(),
        }
    )
