"""Read obs and the spot coordinates of an AnnData."""

from __future__ import annotations

import math
from dataclasses import dataclass
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

DIAMETER = "scalefactors/spot_diameter_fullres"
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


def read_obs_table(path: Path) -> ObsTable:
    """Read only obs and obsm["spatial"] of a .h5ad; SectionError if there is no obs."""
    with open_hdf5(path, "AnnData") as file:
        require_anndata(file, path)
        obs = read_frame(file, "obs")
        centers = None
        if "obsm/spatial" in file:
            spatial = read_limited(file, "obsm/spatial", max_matrix_bytes(len(obs), 2))
            centers = _unless_um(obs, spot_centers(path, spatial, len(obs)))
        library = list(file["uns/spatial"].values()) if "uns/spatial" in file else []
        diameter = None
        if len(library) == 1 and isinstance(library[0], h5py.Group) and DIAMETER in library[0]:
            diameter = _positive(read_limited(library[0], DIAMETER, MAX_METADATA_BYTES))
    return ObsTable(name_array(obs.index, path), obs, centers, diameter)


def obs_table(data: ad.AnnData) -> ObsTable:
    """Take obs and obsm["spatial"] of an AnnData in memory."""
    path = Path("AnnData")
    spatial = data.obsm.get("spatial")
    library = list(data.uns["spatial"].values()) if isinstance(data.uns.get("spatial"), dict) else []
    diameter = library[0].get("scalefactors", {}).get("spot_diameter_fullres") if len(library) == 1 else None
    name = name_array(data.obs_names, path)
    centers = None if spatial is None else _unless_um(data.obs, spot_centers(path, spatial, data.n_obs))
    return ObsTable(name, data.obs, centers, _positive(diameter))


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
