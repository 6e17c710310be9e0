"""Spots of an AnnData file: obs with their places."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.hdf5 import opened


@dataclass(frozen=True)
class PlacedObs:
    """The observations of an AnnData with their places.

    name: str [n].  table: obs [n rows].  xy_px: float64 [n, 2], obsm["spatial"], level-0 px (x, y).
    spot_diameter_px: level-0 px, where uns["spatial"] holds exactly one library that says so.
    """

    name: NDArray[np.str_]
    table: pd.DataFrame
    xy_px: NDArray[np.float64]
    spot_diameter_px: float | None


def read_placed_obs(path: Path) -> PlacedObs:
    """Read obs and obsm["spatial"] of a .h5ad, and nothing else of it; SectionError where they are not there."""
    with opened(path, "AnnData") as file:
        _require_anndata(file, path)
        if "obsm/spatial" not in file:
            raise SectionError(f"{path}: there is no obsm['spatial']; give the spots' level-0 pixels there")
        obs, spatial = read_elem(file["obs"]), read_elem(file["obsm/spatial"])
        library = list(file["uns/spatial"].values()) if "uns/spatial" in file else []
        diameter = (
            _diameter_of(library[0], "scalefactors/spot_diameter_fullres") if len(library) == 1 else None
        )
    return PlacedObs(obs.index.to_numpy().astype(np.str_), obs, _places(path, spatial, len(obs)), diameter)


def placed_obs(data: ad.AnnData) -> PlacedObs:
    """Give obs and obsm["spatial"] of an AnnData in memory."""
    path = Path("AnnData")
    if "spatial" not in data.obsm:
        raise SectionError("AnnData: there is no obsm['spatial']; give the spots' level-0 pixels there")
    library = list(data.uns["spatial"].values()) if isinstance(data.uns.get("spatial"), dict) else []
    said = library[0].get("scalefactors", {}).get("spot_diameter_fullres") if len(library) == 1 else None
    name = data.obs_names.to_numpy().astype(np.str_)
    return PlacedObs(name, data.obs, _places(path, data.obsm["spatial"], data.n_obs), _positive(said))


def _require_anndata(file: h5py.File, path: Path) -> None:
    for group in ("obs", "var"):
        if group not in file:
            raise SectionError(f"{path}: there is no {group}; the file is not an AnnData")


def _places(path: Path, spatial: Any, spots: int) -> NDArray[np.float64]:
    """Give obsm["spatial"] as float64 [n, 2], NaN where a spot has no place; a third column (z) is refused."""
    try:
        places = np.asarray(spatial, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SectionError(
            f"{path}: obsm['spatial'] does not hold numbers; give level-0 pixels (x, y)"
        ) from error
    if places.shape != (spots, 2):
        raise SectionError(
            f"{path}: obsm['spatial'] has shape {places.shape}; give [{spots}, 2], level-0 pixels (x, y)"
        )
    if (wrong := np.isinf(places).any(axis=1)).any():
        raise SectionError(
            f"{path}: row {int(np.argmax(wrong)) + 1}: obsm['spatial'] is infinite; give level-0 pixels"
        )
    return places


def _diameter_of(library: Any, key: str) -> float | None:
    if not isinstance(library, h5py.Group) or key not in library:
        return None
    return _positive(library[key][()])


def _positive(said: Any) -> float | None:
    """Give a diameter where it is a number above 0; others say nothing (it is a hint for drawing, not a place)."""
    try:
        value = float(said)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None
