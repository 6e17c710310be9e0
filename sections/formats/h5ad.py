"""Reader of measured sections in AnnData files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.counts import are_whole, counts_csr, require_unique_spots
from mclst.sections.errors import SectionError
from mclst.sections.formats import hest
from mclst.sections.formats.images import find_image
from mclst.sections.formats.source import SectionSource, list_folder
from mclst.sections.hdf5 import (
    MAX_NAME_LENGTH,
    max_matrix_bytes,
    name_array,
    open_hdf5,
    read_frame,
    read_limited,
)
from mclst.sections.section import Section
from mclst.sections.tables.h5ad_obs import (
    in_um,
    read_library,
    require_anndata,
    require_full_resolution,
    spot_centers,
)
from mclst.sections.tables.synonyms import synonyms_of

OBS_PIXELS = (("x_pixel", "y_pixel"), ("pxl_col_in_fullres", "pxl_row_in_fullres"))
"""Columns of obs with x, y in level-0 px, where there is no obsm["spatial"]."""
NAME_COLUMNS = (
    *("gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "gene_symbols", "gene_symbol"),
    *("symbol", "gene_name", "gene_names", "feature_name"),
)
"""Columns of var, in lower case, with other names of the genes: scanpy, 10x, CELLxGENE, HEST."""


def find(folder: Path) -> dict[str, SectionSource]:
    """Find the .h5ad files of a folder, or of HEST's `st/` in it; a section's name is its file's stem."""
    entries = list_folder(hest.expression_folder(folder))
    files = [entry for entry in entries if entry.suffix == ".h5ad" and entry.is_file()]
    return {file.stem: source_of(file) for file in files}


def source_of(path: Path) -> SectionSource:
    """Describe one .h5ad as a section."""
    root = hest.root_of(path)
    if root is not None:
        slide = hest.find_slide(root, path.stem)
        return SectionSource(
            path.stem, "h5ad", path, image=slide, places=(root / hest.SLIDES, root / hest.PATCHES)
        )
    folders = (path.parent, path.parent / "images")
    return SectionSource(path.stem, "h5ad", path, image=find_image(path.stem, folders), places=folders)


def read(source: SectionSource) -> Section:
    """Read a section: layers["counts"], else X, else raw.X where it holds whole counts and X does not.

    `Section.counts_from` says which.

    Raises SectionError if the file is damaged, a spot appears twice, or a count is negative or not finite.
    """
    with open_hdf5(source.path, "AnnData") as file:
        require_anndata(file, source.path)
        obs = read_frame(file, "obs")
        counts_from, matrix, var = _read_counts(source.path, file, len(obs))
        xy_px = None
        if "obsm/spatial" in file:
            spatial = read_limited(file, "obsm/spatial", max_matrix_bytes(len(obs), 2))
            xy_px = spot_centers(source.path, spatial, len(obs))
            xy_px = None if in_um(obs, xy_px) else xy_px
            require_full_resolution(source.path, xy_px, read_library(file))
        if xy_px is None and (
            pair := next((pair for pair in OBS_PIXELS if set(pair) <= set(obs.columns)), None)
        ):
            xy_px = spot_centers(source.path, obs[list(pair)].to_numpy(), len(obs))
        spot, genes = name_array(obs.index, source.path), name_array(var.index, source.path)
        require_unique_spots(spot, source.path)
        return Section(
            name=source.name,
            path=source.path,
            genes=genes,
            spot=spot,
            counts=counts_csr(matrix, source.path, spot, genes),
            array_xy=array_xy_of(source.path, obs),
            xy_px=xy_px,
            image=source.image,
            counts_from=counts_from,
            synonyms=synonyms_of(genes.tolist(), other_names(var)),
            mpp=hest.read_mpp(source.path),
        )


def _read_counts(path: Path, file: h5py.File, spots: int) -> tuple[str, Any, pd.DataFrame]:
    """Where counts are, they and their genes: layers["counts"], else X, or raw.X where only it is whole."""
    choices = {"layers['counts']": ("layers/counts", "var"), "X": ("X", "var"), "raw.X": ("raw/X", "raw/var")}
    first: tuple[str, Any, pd.DataFrame] | None = None
    for name, (place, genes) in choices.items():
        if place not in file or (name == "raw.X" and genes not in file):
            continue
        var = read_frame(file, genes)
        matrix = read_limited(file, place, max_matrix_bytes(spots, len(var)))
        if name == "layers['counts']" or are_whole(matrix):
            return name, matrix, var
        first = first or (name, matrix, var)
    if first is None:
        raise SectionError(f"{path}: there is neither layers['counts'] nor X; give a file with counts")
    return first


def other_names(var: pd.DataFrame) -> list[list[str]]:
    """The columns of var that hold ids or symbols of the genes."""
    columns = [name for name in var.columns if str(name).casefold() in NAME_COLUMNS]
    return [
        [
            "" if missing else str(name)[:MAX_NAME_LENGTH]
            for name, missing in zip(var[c], var[c].isna(), strict=True)
        ]
        for c in columns
    ]


def array_xy_of(path: Path, obs: pd.DataFrame) -> NDArray[np.int64] | None:
    """Array coordinates (column, row) of obs, int64 [n, 2], or None; SectionError if they are no numbers."""
    if not {"array_col", "array_row"} <= set(obs.columns):
        return None
    try:
        values = obs[["array_col", "array_row"]].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SectionError(f"{path}: obs array_col, array_row do not hold numbers") from error
    invalid = ~(values == np.floor(values)).all(axis=1) | ~np.isfinite(values).all(axis=1)
    if invalid.any():
        row = int(np.argmax(invalid)) + 1
        raise SectionError(f"{path}: row {row}: obs array_col, array_row are not whole numbers")
    return values.astype(np.int64)
