"""Samples of a task: features and expression of the same spots, and predictions made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.leaderboard.tasks import Task
from mclst.runtime.atomic import temp_path
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import InputError
from mclst.sections.errors import pass_out_of_memory

Array = NDArray[np.float64]
BATCH = 32
FEATURES = ("embeddings", "features")
BARCODES = ("barcodes", "barcode")
IMAGES = ("img", "imgs", "images")


@dataclass(frozen=True)
class Sample:
    """features: float64 [n, F]. expression: float64 [n, G], ln(1 + counts), as both benchmarks take it."""

    features: Array
    expression: Array


def read_expression(
    path: Path, genes: Sequence[str], barcodes: Sequence[str] | None = None
) -> tuple[list[str], Array]:
    """Spots and values [n, G] of an .h5ad, of the named spots in their order if given.

    Raises InputError if it is no AnnData, or a gene or spot is missing.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; download the task again, or make the prediction")
    try:
        data = anndata.read_h5ad(path)
    except Exception as error:
        pass_out_of_memory(error)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is not an .h5ad ({reason}); download it again") from error
    for kind, wanted, names in (("gene", genes, data.var_names), ("spot", barcodes or (), data.obs_names)):
        missing = next((name for name in wanted if name not in names), None)
        if missing is not None:
            raise InputError(f"{path} lacks {kind} {missing}; download it again, or give --genes")
    chosen = data[:, list(genes)] if barcodes is None else data[list(barcodes), list(genes)]
    values = chosen.X.toarray() if hasattr(chosen.X, "toarray") else chosen.X
    return chosen.obs_names.astype(str).tolist(), np.asarray(values, np.float64)


def find_embeddings(folder: Path, task: str, sample: str) -> Path:
    """FOLDER/[TASK/[…/]]SAMPLE.h5; InputError if there is not exactly one."""
    direct = [folder / f"{sample}.h5", folder / task / f"{sample}.h5"]
    paths = [p for p in direct if p.is_file()] or sorted(folder.glob(f"**/{task}/**/{sample}.h5"))
    if len(paths) != 1:
        listed = f"; there are {', '.join(map(str, paths))}" if paths else ""
        raise InputError(
            f"{folder} has not exactly one {sample}.h5 for task {task}{listed}; give one encoder's folder"
        )
    return paths[0]


def read_embeddings(folder: Path, task: str, sample: str) -> tuple[list[str] | None, Array]:
    """Barcodes, if the file has them, and features [n, F]; InputError as `find_embeddings`."""
    return _read_h5(find_embeddings(folder, task, sample))


def _read_h5(path: Path) -> tuple[list[str] | None, Array]:
    try:
        with h5py.File(path, "r") as file:
            name = next((name for name in FEATURES if name in file), None)
            if name is None:
                raise InputError(f"{path} has no dataset {' or '.join(FEATURES)}; extract the features again")
            values = np.asarray(file[name][:], np.float64)
            barcode = next((name for name in BARCODES if name in file), None)
            barcodes = None if barcode is None else _texts(file[barcode][:])
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read ({error}); extract the features again") from error
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"{path}: the features are no finite table [spots, features]; extract them again")
    return barcodes, values


def _texts(values: NDArray[np.generic]) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.ravel().tolist()]


def encode_patches(
    task: Task, sample: str, session: Session, size_px: int, cache: Path
) -> tuple[list[str] | None, Array]:
    """Barcodes and features of a sample's patches by an encoder; kept in `cache`, an .h5 per sample.

    Raises InputError if the patches are missing or of another size than the encoder's tiles.
    """
    kept = cache / f"{sample}.h5"
    if kept.is_file():
        return _read_h5(kept)
    path = task.patches[sample]
    try:
        with h5py.File(path, "r") as file:
            images = next((file[name] for name in IMAGES if name in file), None)
            if images is None or images.ndim != 4 or images.shape[1:] != (size_px, size_px, 3):
                shape = None if images is None else images.shape
                raise InputError(
                    f"{path}: the patches are {shape}, and the encoder takes tiles of {size_px} px"
                )
            parts = [
                session.encode(np.ascontiguousarray(images[i : i + BATCH], np.uint8))
                for i in range(0, len(images), BATCH)
            ]
            barcode = next((name for name in BARCODES if name in file), None)
            barcodes = None if barcode is None else _texts(file[barcode][:])
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read ({error}); download the task's patches") from error
    features = np.concatenate(parts)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = temp_path(kept)
    with h5py.File(temporary, "w") as file:
        file["embeddings"] = features
        if barcodes is not None:
            file.create_dataset("barcodes", data=barcodes, dtype=h5py.string_dtype())
    temporary.replace(kept)
    return barcodes, features.astype(np.float64)


def read_sample(task: Task, sample: str, features: Callable[[str], tuple[list[str] | None, Array]]) -> Sample:
    """Join features with ln(1 + counts); InputError where their spots do not fit."""
    barcodes, values = features(sample)
    path = task.expression[sample]
    _, counts = read_expression(path, task.genes, barcodes)
    if len(counts) != len(values):
        raise InputError(
            f"{path} has {len(counts)} spots and the features of {sample} {len(values)}; extract them again"
        )
    if counts.size and counts.min() < 0:
        raise InputError(f"{path} holds negative counts; download it again")
    return Sample(values, np.log1p(counts))


def find_prediction(folder: Path, task: Task, fold: int, sample: str) -> Path:
    """FOLDER/[TASK/][fold_K/]SAMPLE.h5ad, the most special that exists."""
    places = [folder / task.name / f"fold_{fold}", folder / task.name, folder / f"fold_{fold}", folder]
    paths = [place / f"{sample}.h5ad" for place in places]
    return next((path for path in paths if path.is_file()), paths[-1])


def read_prediction(path: Path, task: Task, sample: str) -> Sample:
    """A prediction in the protocol's units, ln(1 + counts), as features, beside the sample's expression.

    Raises InputError if it is no .h5ad or lacks a gene.
    """
    spots, predicted = read_expression(path, task.genes)
    _, counts = read_expression(task.expression[sample], task.genes, spots)
    return Sample(predicted, np.log1p(counts))
