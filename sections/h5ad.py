"""AnnData files: measured sections, and tables of spots."""

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

from mclst.sections.counts import counts_csr, require_unique_spots
from mclst.sections.hdf5 import opened
from mclst.sections.section import Section, SectionError
from mclst.sections.source import SectionSource, entries, image_of


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


def find(folder: Path) -> dict[str, SectionSource]:
    """Find the .h5ad files of a folder; a section's name is its file's stem."""
    files = [entry for entry in entries(folder) if entry.suffix == ".h5ad" and entry.is_file()]
    return {file.stem: source_of(file) for file in files}


def source_of(path: Path) -> SectionSource:
    """Describe one .h5ad as a section."""
    folders = (path.parent, path.parent / "images")
    return SectionSource(path.stem, "h5ad", path, image=image_of(path.stem, folders))


def read(source: SectionSource) -> Section:
    """Read a section: layers["counts"] where there is one, else X; Section.counts_from says which.

    Raises SectionError where the file is damaged, a spot stands twice or a count is not finite and ≥ 0.
    """
    with opened(source.path, "AnnData") as file:
        _require_anndata(file, source.path)
        obs, var = read_elem(file["obs"]), read_elem(file["var"])
        counts_from = "layers['counts']" if "counts" in file.get("layers", {}) else "X"
        if counts_from == "X" and "X" not in file:
            raise SectionError(
                f"{source.path}: there is neither layers['counts'] nor X; give a file with counts"
            )
        matrix = read_elem(file["layers/counts" if counts_from != "X" else "X"])
        xy_px = (
            _places(source.path, read_elem(file["obsm/spatial"]), len(obs))
            if "obsm/spatial" in file
            else None
        )
    spot, genes = obs.index.to_numpy().astype(np.str_), var.index.to_numpy().astype(np.str_)
    require_unique_spots(spot, source.path)
    return Section(
        name=source.name,
        path=source.path,
        genes=genes,
        spot=spot,
        counts=counts_csr(matrix, source.path, spot, genes),
        array_xy=_array_xy(source.path, obs),
        xy_px=xy_px,
        image=source.image,
        counts_from=counts_from,
    )


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


def _array_xy(path: Path, obs: pd.DataFrame) -> NDArray[np.int64] | None:
    if not {"array_col", "array_row"} <= set(obs.columns):
        return None
    try:
        values = obs[["array_col", "array_row"]].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SectionError(f"{path}: obs array_col, array_row do not hold numbers") from error
    wrong = ~(values == np.floor(values)).all(axis=1) | ~np.isfinite(values).all(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong)) + 1
        raise SectionError(f"{path}: row {row}: obs array_col, array_row are not whole numbers")
    return values.astype(np.int64)


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
