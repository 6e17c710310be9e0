"""Read obs and the spot coordinates of an AnnData."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.hdf5 import (
    MAX_METADATA_BYTES,
    max_matrix_bytes,
    name_array,
    open_hdf5,
    read_frame,
    read_limited,
)

if TYPE_CHECKING:
    import anndata as ad

DIAMETER = "spot_diameter_fullres"
PICTURES = {"hires": ("tissue_hires_scalef", 2000), "lowres": ("tissue_lowres_scalef", 600)}
"""Space Ranger's downscaled pictures: the name of their px per level-0 px, and their longest side."""
PITCH = (1.0, 2.2)
"""Distance of neighboring spots, in their diameters: 100 over 55 or 65 µm for Visium, 1 for bins."""
MICROMETERS = ("x_centroid", "y_centroid")
"""Columns of obs in µm, by 10x Genomics; squidpy's guide to Xenium copies them to obsm["spatial"]."""


@dataclass(frozen=True)
class ObsTable:
    """Observations of an AnnData with their coordinates.

    name: str [n].  table: obs [n rows].  xy_px: float64 [n, 2], obsm["spatial"], level-0 px (x, y), or None
    where there is none, or it is in µm.
    spot_diameter_px: level-0 px, if uns["spatial"] holds exactly one library with a diameter.
    """

    name: NDArray[np.str_]
    table: pd.DataFrame
    xy_px: NDArray[np.float64] | None
    spot_diameter_px: float | None


@dataclass(frozen=True)
class Library:
    """The one library of uns["spatial"].

    diameter: of a spot, level-0 px, or None. pictures: scale (px per level-0 px) and longest side in px of
    each downscaled picture whose scale is known, by name.
    """

    diameter: float | None = None
    pictures: Mapping[str, tuple[float, int]] = field(default_factory=dict)


def read_library(file: h5py.File) -> Library:
    """Read the one library of a file; an empty one where there is none, or several."""
    libraries = list(file["uns/spatial"].values()) if "uns/spatial" in file else []
    if len(libraries) != 1 or not isinstance(libraries[0], h5py.Group):
        return Library()
    group = libraries[0]
    names = (DIAMETER, *(scale for scale, _ in PICTURES.values()))
    paths = {name: f"scalefactors/{name}" for name in names if f"scalefactors/{name}" in group}
    factors = {name: read_limited(group, path, MAX_METADATA_BYTES) for name, path in paths.items()}
    images = {name: group[f"images/{name}"] for name in PICTURES if f"images/{name}" in group}
    return _library(factors, images)


def _library(factors: Mapping[str, Any], images: Mapping[str, Any]) -> Library:
    pictures = {}
    for name, (factor, side) in PICTURES.items():
        if (scale := _positive(factors.get(factor))) is not None:
            shape = getattr(images.get(name), "shape", ())
            pictures[name] = scale, max(shape[:2]) if len(shape) in (2, 3) else side
    return Library(_positive(factors.get(DIAMETER)), pictures)


def read_obs_table(path: Path) -> ObsTable:
    """Read only obs and obsm["spatial"] of a .h5ad; SectionError if there is no obs."""
    with open_hdf5(path, "AnnData") as file:
        require_anndata(file, path)
        obs = read_frame(file, "obs")
        centers = None
        if "obsm/spatial" in file:
            spatial = read_limited(file, "obsm/spatial", max_matrix_bytes(len(obs), 2))
            centers = _unless_um(obs, spot_centers(path, spatial, len(obs)))
        library = read_library(file)
    require_full_resolution(path, centers, library)
    return ObsTable(name_array(obs.index, path), obs, centers, library.diameter)


def obs_table(data: ad.AnnData) -> ObsTable:
    """Take obs and obsm["spatial"] of an AnnData in memory."""
    path = Path("AnnData")
    spatial = data.obsm.get("spatial")
    libraries = list(data.uns["spatial"].values()) if isinstance(data.uns.get("spatial"), dict) else []
    library = Library()
    if len(libraries) == 1:
        library = _library(libraries[0].get("scalefactors", {}), libraries[0].get("images", {}))
    name = name_array(data.obs_names, path)
    centers = None if spatial is None else _unless_um(data.obs, spot_centers(path, spatial, data.n_obs))
    require_full_resolution(path, centers, library)
    return ObsTable(name, data.obs, centers, library.diameter)


def require_anndata(file: h5py.File, path: Path) -> None:
    """Raise SectionError if the file is not an AnnData."""
    for group in ("obs", "var"):
        if group not in file:
            raise SectionError(f"{path}: there is no {group}; the file is not an AnnData")


def spot_centers(path: Path, spatial: Any, spots: int) -> NDArray[np.float64]:
    """Check obsm["spatial"], float64 [n, 2], NaN for spots without coordinates; a third column is refused."""
    try:
        centers = np.asarray(spatial, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SectionError(
            f"{path}: obsm['spatial'] does not hold numbers; give level-0 pixels (x, y)"
        ) from error
    if centers.shape != (spots, 2):
        raise SectionError(
            f"{path}: obsm['spatial'] has shape {centers.shape}; give [{spots}, 2], level-0 pixels (x, y)"
        )
    if (infinite := np.isinf(centers).any(axis=1)).any():
        raise SectionError(
            f"{path}: row {int(np.argmax(infinite)) + 1}: obsm['spatial'] is infinite; give level-0 pixels"
        )
    return centers


def require_full_resolution(path: Path, centers: NDArray[np.float64] | None, library: Library) -> None:
    """Refuse positions [n, 2] in px of a downscaled picture, as Seurat's GetTissueCoordinates gives them.

    They all lie within that picture, and neighbors are as far apart as spots of that scale, not of level 0.
    Converters of Seurat objects leave positions out; scripts copy them from there.

    Raises SectionError.
    """
    known = np.empty((0, 2)) if centers is None else centers[np.isfinite(centers).all(axis=1)]
    if library.diameter is None or len(known) < 2:
        return
    for name, (scale, side) in library.pictures.items():
        if scale >= 1 or known.max() > side:
            continue
        distance = _pitch(known) / library.diameter
        if distance < PITCH[0] <= distance / scale <= PITCH[1]:
            raise SectionError(
                f"{path}: obsm['spatial'] holds px of the {name} picture, as Seurat's "
                f"GetTissueCoordinates(object, scale = '{name}') gives them; divide it by its scale, "
                f"{scale:.6g}, or take scale = NULL"
            )


def _pitch(xy: NDArray[np.float64]) -> float:
    """Median distance of a position to the nearest other one."""
    from scipy.spatial import cKDTree  # most tables do not get here

    distances: Any = cKDTree(xy).query(xy, k=2)[0]
    return float(np.median(distances[:, 1]))


def _unless_um(obs: pd.DataFrame, centers: NDArray[np.float64]) -> NDArray[np.float64] | None:
    return None if in_um(obs, centers) else centers


def in_um(obs: pd.DataFrame, centers: NDArray[np.float64]) -> bool:
    """Whether positions [n, 2] are those that obs has in µm."""
    if not set(MICROMETERS) <= set(obs.columns):
        return False
    try:
        um = obs[list(MICROMETERS)].to_numpy(np.float64)
    except (TypeError, ValueError):
        return False
    return bool(np.allclose(centers, um, equal_nan=True))


def _positive(value: Any) -> float | None:
    """Return a finite number above 0, else None: a diameter is only a drawing hint."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
