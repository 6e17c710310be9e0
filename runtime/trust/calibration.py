"""What held-out sections showed of a bundle: `calibration.h5`, and how it applies to the spots of a map."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import BundleError
from mclst.runtime.trust.stain import Stain

FORMAT = "mclst-calibration/1"
MAX_BYTES = 256 << 20
MAX_GALLERY = 4096
PERCENTILES = 101
QUERY_ROWS = 256

Floats = NDArray[np.float32]

SHAPES: dict[str, tuple[str, ...]] = {
    "projection": ("D", "Q"),
    "gallery": ("M", "Q"),
    "distance": ("P",),
    "edges": ("E",),
    "levels": ("L",),
    "residual": ("L", "B", "S", "G"),
    "r": ("K", "G"),
    "expected_r": ("G",),
    "low_r": ("G",),
    "error": ("G",),
    "error_at": ("T",),
    "spot_error": ("T",),
    "coverage": ("L", "K"),
    "stain": ("N", "C"),
}
"""Data sets of the file, all float32, and their axes by letter; equal letters are equal lengths."""
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


@dataclass(frozen=True)
class Calibration:
    """What K groups of sections, each predicted from the others, showed.

    Parameters
    ----------
    kind : str
        What was left out together: "section", "patient", "group", or "part of one section".
    group : tuple of str
        Names of the K groups.
    sections, spots : int
        Sections and spots behind the figures.
    projection : float32 [D, Q]
        From an embedding to the space in which distances are Euclidean.
    gallery : float32 [M, Q]
        Projected embeddings of training spots, at most 4096.
    distance : float32 [101]
        Percentiles 0 to 100 of the held-out spots' distance to the nearest gallery spot of other groups.
    edges : float32 [B - 1]
        Distances between the bins of `residual`.
    levels : float32 [L]
        Coverages of the intervals, such as 0.8 and 0.9.
    residual : float32 [L, B, 2, G]
        Lower and upper quantile of truth - prediction per bin of distance.
    r : float32 [K, G]
        Pearson r per group; NaN where a gene is constant.
    expected_r, low_r : float32 [G]
        Expected r in a new section, and the r that 9 of 10 new sections exceed; NaN where unknown.
    error : float32 [G]
        Root mean squared error.
    error_at, spot_error : float32 [T]
        Root mean squared error of a spot over its genes, at these means of its predicted expression.
    coverage : float32 [L, K]
        Share of a group's values inside intervals that the other groups gave; NaN where there is no other.
    stain : float32 [N, 11]
        `stain_values` of each section with a slide; N may be 0.
    """

    kind: str
    group: tuple[str, ...]
    sections: int
    spots: int
    projection: Floats
    gallery: Floats
    distance: Floats
    edges: Floats
    levels: Floats
    residual: Floats
    r: Floats
    expected_r: Floats
    low_r: Floats
    error: Floats
    error_at: Floats
    spot_error: Floats
    coverage: Floats
    stain: Floats

    @property
    def genes(self) -> int:
        """G."""
        return len(self.error)

    def distances(self, embedding: NDArray[np.floating[Any]]) -> Floats:
        """Euclidean distance float32 [n] of embeddings [n, D] to the nearest spot of the gallery."""
        result = np.empty(len(embedding), np.float32)
        squares = np.square(self.gallery).sum(axis=1)
        for start in range(0, len(embedding), QUERY_ROWS):
            query = np.asarray(embedding[start : start + QUERY_ROWS], np.float32) @ self.projection
            nearest = (squares - 2 * (query @ self.gallery.T)).argmin(axis=1)
            # Exact for the chosen spot: the expanded square cancels where the distance is small.
            result[start : start + QUERY_ROWS] = np.linalg.norm(query - self.gallery[nearest], axis=1)
        return result

    def percentiles(self, distance: NDArray[np.floating[Any]]) -> Floats:
        """Share float32 [n], 0 to 1, of the held-out spots that are nearer than `distance` [n]."""
        rank = np.interp(distance, self.distance, np.linspace(0, 1, PERCENTILES), right=1.0)
        return np.where(distance > self.distance[-1], 1.0, rank).astype(np.float32)

    def interval(
        self, expression: Floats, distance: NDArray[np.floating[Any]], outside: NDArray[np.bool_], level: int
    ) -> tuple[Floats, Floats]:
        """Return the intervals (low, high) float32 [n, G] of level number `level`.

        expression: float32 [n, G]. distance: [n]. outside: bool [n], spots without an interval: NaN.
        No expression is below 0, so no lower bound is, unless the prediction itself is.
        """
        spots = np.searchsorted(self.edges, distance)
        low, high = (expression + self.residual[level, spots, side] for side in (0, 1))
        low = np.maximum(low, np.minimum(expression, 0))
        high = np.maximum(high, low)
        low[outside] = high[outside] = np.nan
        return low, high

    def spot_errors(self, expression: Floats) -> Floats:
        """Expected root mean squared error float32 [n] of spots with expression [n, G], in its units."""
        mean = expression.mean(axis=1, dtype=np.float64)
        return np.asarray(np.interp(mean, self.error_at, self.spot_error), np.float32)

    def of_genes(self, kept: NDArray[np.int64]) -> Calibration:
        """Return the same for some genes alone, by their columns."""
        parts = {name: getattr(self, name)[..., kept] for name, axes in SHAPES.items() if axes[-1] == "G"}
        return replace(self, **parts)

    def reliable(self, level: float) -> NDArray[np.bool_]:
        """Bool [G]: genes whose r exceeds `level` in 9 of 10 new sections."""
        return np.asarray(np.nan_to_num(self.low_r, nan=-1.0) >= level)


def stain_values(stain: Stain) -> list[float]:
    """Background, hematoxylin, eosin (3 values each), density and saturation: what is compared of a stain."""
    return [*stain.background, *stain.hematoxylin, *stain.eosin, stain.density, stain.saturation]


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
        with h5py.File(path, "r") as file:
            values = {name: _floats(file, name, path) for name in SHAPES}
            counts = _plain(file, "counts", 1, path)[:]
            texts = [str(text) for text in _plain(file, "texts", 1, path).asstr()[:]]
    except (BundleError, MemoryError):
        raise
    except Exception as error:  # h5py raises nearly any type on damaged bytes
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


def _plain(file: h5py.File, name: str, rank: int, path: Path) -> h5py.Dataset:
    """Get a plain data set: no links, no other files, no filters, no more than the file holds."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(
        file[name], h5py.Dataset
    ):
        raise BundleError(f"{path} has no dataset /{name}; export the bundle again")
    data = file[name]
    if data.external or data.is_virtual or data.chunks is not None or data.ndim != rank:
        raise BundleError(f"{path}: /{name} is not a plain array of rank {rank}; export the bundle again")
    if data.nbytes > path.stat().st_size:
        raise BundleError(f"{path}: /{name} declares more than the file holds; export the bundle again")
    return data


def _floats(file: h5py.File, name: str, path: Path) -> Floats:
    data = _plain(file, name, len(SHAPES[name]), path)
    if data.dtype != np.float32:
        raise BundleError(f"{path}: /{name} is {data.dtype}, not float32; export the bundle again")
    values: Floats = data[:]
    fine = np.isfinite(values) if name not in UNDEFINED else ~np.isinf(values)
    if not fine.all():
        raise BundleError(f"{path}: /{name} holds a value that is not finite; export the bundle again")
    return values


def _check_shapes(values: dict[str, Floats], path: Path, *, genes: int, dim: int) -> None:
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


assert {field.name for field in fields(Calibration)} >= SHAPES.keys()
