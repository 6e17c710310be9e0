"""Reader of measured sections in AnnData files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.counts import counts_csr, require_unique_spots
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
from mclst.sections.tables.h5ad_obs import require_anndata, spot_centers
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
    """Read a section: layers["counts"] if present, else X; `Section.counts_from` says which.

    Raises SectionError if the file is damaged, a spot appears twice, or a count is negative or not finite.
    """
    with open_hdf5(source.path, "AnnData") as file:
        require_anndata(file, source.path)
        obs, var = read_frame(file, "obs"), read_frame(file, "var")
        counts_from = "layers['counts']" if "layers/counts" in file else "X"
        if counts_from == "X" and "X" not in file:
            raise SectionError(
                f"{source.path}: there is neither layers['counts'] nor X; give a file with counts"
            )
        counts = "layers/counts" if counts_from != "X" else "X"
        matrix = read_limited(file, counts, max_matrix_bytes(len(obs), len(var)))
        xy_px = None
        if "obsm/spatial" in file:
            spatial = read_limited(file, "obsm/spatial", max_matrix_bytes(len(obs), 2))
            xy_px = spot_centers(source.path, spatial, len(obs))
        elif pair := next((pair for pair in OBS_PIXELS if set(pair) <= set(obs.columns)), None):
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
