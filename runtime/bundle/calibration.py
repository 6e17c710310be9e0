"""`calibration.h5`: what held-out sections showed, in one HDF5 file."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np

from mclst.runtime.bundle.bank import plain_dataset
from mclst.runtime.bundle.manifest import Manifest
from mclst.runtime.errors import BundleError
from mclst.runtime.trust.calibration import MAX_GALLERY, PERCENTILES, SHAPES, Calibration, Floats
from mclst.sections.errors import pass_out_of_memory

FORMAT = "mclst-calibration/1"
MAX_BYTES = 256 << 20

FIXED = {"P": PERCENTILES, "S": 2, "C": 11}
MOST = {
    "D": 65_536,
    "Q": 1024,
    "M": MAX_GALLERY,
    "E": 63,
    "L": 8,
    "B": 64,
    "K": 100_000,
    "T": 1024,
    "N": 100_000,
}
UNDEFINED = ("r", "expected_r", "low_r", "coverage")
"""Those in which NaN is a value: r of a constant gene."""


def calibration_bytes(calibration: Calibration) -> bytes:
    """Content of the HDF5 file, made in memory since HDF5 does not report a full disk."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name in SHAPES:
            file[name] = getattr(calibration, name).astype("<f4")
        file["counts"] = np.array([calibration.sections, calibration.spots], "<i8")
        texts = [FORMAT, calibration.kind, *calibration.group]
        file.create_dataset("texts", data=texts, dtype=h5py.string_dtype())
    return buffer.getvalue()


def read_calibration(path: Path, *, genes: int, dim: int) -> Calibration:
    """Read calibration.h5 of a bundle with this many genes and dimensions of its embedding.

    Raises
    ------
    BundleError
        If it is damaged, too large, or its parts do not fit together or the bundle.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BundleError(f"{path} is larger than {MAX_BYTES >> 20} MiB; export the bundle again")
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); export the bundle again") from error
    return parse_calibration(content, path, genes=genes, dim=dim)


def parse_calibration(content: bytes, path: str | Path, *, genes: int, dim: int) -> Calibration:
    """See `read_calibration`; path: where the content is from, for messages."""
    size = len(content)
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            values = {name: _floats(file, name, path, size) for name in SHAPES}
            counts = plain_dataset(file, "counts", 1, path, size)[:]
            texts = [str(text) for text in plain_dataset(file, "texts", 1, path, size).asstr()[:]]
    except BundleError:
        raise
    except Exception as error:  # h5py raises nearly any type on damaged bytes
        pass_out_of_memory(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(
            f"{path} is not a readable calibration ({reason}); export the bundle again"
        ) from error
    _check_shapes(values, path, genes=genes, dim=dim)
    known = counts.dtype == np.int64 and counts.shape == (2,) and (counts > 0).all()
    if (
        not known
        or texts[:1] != [FORMAT]
        or len(texts) != 2 + len(values["r"])
        or max(map(len, texts)) > 1000
    ):
        raise BundleError(f"{path} is no {FORMAT} of this bundle; export the bundle again")
    increasing = (np.diff(values[name]) >= 0 for name in ("distance", "edges", "error_at"))
    if (
        not all(steps.all() for steps in increasing)
        or (values["residual"][:, :, 0] > values["residual"][:, :, 1]).any()
    ):
        raise BundleError(f"{path}: its percentiles or quantiles are not in order; export the bundle again")
    return Calibration(
        kind=texts[1], group=tuple(texts[2:]), sections=int(counts[0]), spots=int(counts[1]), **values
    )


def check_record(calibration: Calibration, manifest: Manifest, path: str | Path) -> Calibration:
    """Return a calibration; raise BundleError if it is not what the manifest describes."""
    record = manifest.calibration
    assert record is not None, "a calibrated bundle has one"
    actual = (len(calibration.group), calibration.sections, calibration.spots)
    if actual != (record.groups, record.sections, record.spots):
        raise BundleError(
            f"{path} holds {actual} (groups, sections, spots) and the manifest says "
            f"{(record.groups, record.sections, record.spots)}; export the bundle again"
        )
    return calibration


def _floats(file: h5py.File, name: str, path: str | Path, size: int) -> Floats:
    data = plain_dataset(file, name, len(SHAPES[name]), path, size)
    if data.dtype != np.float32:
        raise BundleError(f"{path}: /{name} is {data.dtype}, not float32; export the bundle again")
    values: Floats = data[:]
    fine = np.isfinite(values) if name not in UNDEFINED else ~np.isinf(values)
    if not fine.all():
        raise BundleError(f"{path}: /{name} holds a value that is not finite; export the bundle again")
    return values


def _check_shapes(values: dict[str, Floats], path: str | Path, *, genes: int, dim: int) -> None:
    sizes = {**FIXED, "G": genes, "D": dim}
    for name, axes in SHAPES.items():
        for axis, length in zip(axes, values[name].shape, strict=True):
            least = 0 if axis in "EN" else 1
            if sizes.setdefault(axis, length) != length or not least <= length <= MOST.get(axis, length):
                raise BundleError(
                    f"{path}: /{name} is {list(values[name].shape)}, which does not fit the bundle's {genes} "
                    f"genes and {dim} dimensions or the other parts; export the bundle again"
                )
    if sizes["B"] != sizes["E"] + 1:
        raise BundleError(f"{path}: {sizes['B']} bins have {sizes['E']} edges; export the bundle again")
