"""Write a bundle as a model repository for NVIDIA Triton."""

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
from mclst.runtime.atomic import AtomicFolder, write_atomically, writing
from mclst.runtime.bundle.bundle import BANK, Bundle
from mclst.runtime.bundle.manifest import CALIBRATION, FileRecord
from mclst.runtime.encoder.cuda.device import CudaDevice
from mclst.runtime.encoder.onnxruntime_cpu import check_encoder, open_graph
from mclst.runtime.encoder.tensorrt.engine_cache import Engine, EngineRequest, find_engine
from mclst.runtime.encoder.tensorrt.library import load_library
from mclst.runtime.errors import BundleError, ResourceError
from mclst.runtime.hashing import file_sha256
from mclst.runtime.serving.server_manifest import Served, ServedBundle, check_servable, inner_model
from mclst.runtime.serving.triton_models import DOCUMENT, VERSION
from mclst.runtime.versions import installed_versions

MODEL_HEADER = '"""Run by Triton\'s Python backend; the code is mclst\'s, installed there."""\n\n'


@dataclass(frozen=True)
class Serving:
    """How to serve a bundle.

    Parameters
    ----------
    name : str
        Name of the served model and prefix of its parts.
    precision : str
        Of the encoder.
    max_batch : int
        Largest batch of tiles.
    tensorrt : bool
        Serve the bundle's TensorRT engine for this machine's GPU instead of the graph.
    """

    name: str = "mclst"
    precision: str = "fp32"
    max_batch: int = 64
    tensorrt: bool = False


def write_repository(
    bundle: Bundle,
    path: str | Path,
    serving: Serving | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write a model repository, completely or not at all.

    Parameters
    ----------
    bundle : Bundle
    path : str or Path
        Folder of the repository.
    serving : Serving, optional
    overwrite : bool
        Replace a repository of the same name.
    say : callable, optional
        Called with progress messages.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        If the bundle predicts whole slides, which a tile server cannot run.
    BundleError
        If its graph does not match its manifest.
    ResourceError
        If the engine or ONNX Runtime is missing.
    OutputError
        If `path` cannot be written.
    """
    serving, path = serving or Serving(), Path(path)
    manifest = bundle.manifest
    name = f"{bundle.path} is a bundle of {manifest.system}"
    check_servable(manifest.kind, name, neighborhood=manifest.neighborhood is not None)
    output = _encoder_output(bundle, serving.precision)
    engine = _engine(bundle, serving) if serving.tensorrt else None
    with (
        AtomicFolder(path, mark=_mark(serving.name), overwrite=overwrite, option="--triton") as draft,
        writing(path, option="another --triton"),
    ):
        say(f"writing the models of {serving.name}")
        copies = _copy(draft.part, bundle, serving, engine)
        served = _served(bundle, serving, engine, draft.part)
        for copy, name in copies.items():
            if served.files[copy] != manifest.files[name]:
                raise BundleError(f"{bundle.path / name} changed while it was being read; run again")
        _write_model(draft.part, served, _second(bundle))
        _write_model(draft.part, served, "manifest")
        (draft.part / serving.name / VERSION).mkdir(parents=True)
        _write_config(draft.part, ensemble_config(served, output))
        _write_config(draft.part, encoder_config(served, output))
        document = (served.model_dump_json(indent=2) + "\n").encode()
        write_atomically(draft.part / _mark(serving.name), document)
        draft.publish()
    return path


def _second(bundle: Bundle) -> str:
    """Part after the encoder."""
    return "retrieval" if bundle.manifest.kind == "retrieval" else "direct"


def _mark(name: str) -> str:
    """File that identifies a repository of this name."""
    return f"{inner_model(name, 'manifest')}/{VERSION}/{DOCUMENT}"


def _encoder_output(bundle: Bundle, precision: str) -> str:
    """Name of the graph's output; BundleError if ONNX Runtime finds another graph than the manifest says."""
    path = bundle.encoder(precision)
    output, tile, width = check_encoder(open_graph(path, "cpu"), path)
    size_px, expected = bundle.manifest.tile.size_px, bundle.manifest.encoder.output_dim
    if (tile, width) != ((size_px, size_px, 3), expected):
        raise BundleError(
            f"{path} takes tiles of {tile} and gives {width} values, and the manifest says {size_px} px and "
            f"{expected}; export the bundle again"
        )
    return output


def _engine(bundle: Bundle, serving: Serving) -> Engine:
    request = EngineRequest(
        bundle.encoder(serving.precision),
        serving.precision,
        load_library("tensorrt"),
        CudaDevice().gpu,
        serving.max_batch,
    )
    engine, reason = find_engine(bundle.path, request)
    if engine is None:
        raise ResourceError(
            f"{bundle.path} has no {serving.precision} engine of {request.library} for {request.gpu.name}: "
            f"{reason or 'there is none yet'}; export with --engine tensorrt on this machine"
        )
    return engine


def _copy(repository: Path, bundle: Bundle, serving: Serving, engine: Engine | None) -> dict[str, str]:
    """Copy graph or engine, bank and calibration; return path in the repository → name in the bundle."""
    encoder = _version(repository, serving.name, "encoder")
    copies: dict[Path, str] = {}
    if engine is not None:
        (encoder / "model.plan").write_bytes(engine.plan)
    else:
        onnx = bundle.encoder(serving.precision)
        copies[encoder / "model.onnx"] = onnx.name
        weights = f"{onnx.name}.data"
        if weights in bundle.manifest.files:
            copies[encoder / weights] = weights  # the graph refers to this name
    second = _version(repository, serving.name, _second(bundle))
    if bundle.manifest.kind == "retrieval":
        copies[second / BANK] = BANK
    if bundle.manifest.calibration is not None:
        copies[second / CALIBRATION] = CALIBRATION
    for copy, name in copies.items():
        shutil.copyfile(bundle.path / name, copy)
    return {copy.relative_to(repository).as_posix(): name for copy, name in copies.items()}


def _write_model(repository: Path, served: Served, part: str) -> None:
    """Write a model of the Python backend: its config and a `model.py` that names its class."""
    configs = {"retrieval": retrieval_config, "direct": direct_config, "manifest": manifest_config}
    folder = _version(repository, served.name, part)
    text = (
        f"{MODEL_HEADER}from mclst.runtime.serving.triton_models import {part.title()}Model as "
        "TritonPythonModel\n"
    )
    (folder / "model.py").write_text(text, encoding="utf-8")
    _write_config(repository, configs[part](served))


def _write_config(repository: Path, config: Message) -> None:
    (repository / config["name"] / "config.pbtxt").write_text(pbtxt(config), encoding="utf-8")


def _version(repository: Path, name: str, part: str) -> Path:
    folder = repository / inner_model(name, part) / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _served(bundle: Bundle, serving: Serving, engine: Engine | None, repository: Path) -> Served:
    """Server manifest with the hashes of the files written so far: graph or engine, bank, calibration."""
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
            "name": serving.name,
            "bundle": ServedBundle(sha256=bundle.sha256, manifest=bundle.manifest),
            "genes": tuple(bundle.genes),
            "gene_ids": None if bundle.gene_ids is None else tuple(bundle.gene_ids),
            "precision": serving.precision,
            "max_batch": serving.max_batch,
            "backend": "onnxruntime" if engine is None else "tensorrt",
            "files": files,
            "versions": installed_versions(),
            "calibrated": bundle.manifest.calibration is not None,
        }
    )
