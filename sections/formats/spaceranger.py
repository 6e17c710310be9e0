"""Reader of Space Ranger output: `filtered_feature_bc_matrix` as .h5 or matrix folder, and `spatial/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.counts import counts_csr, require_unique_spots
from mclst.sections.errors import SectionError
from mclst.sections.formats import visium_hd
from mclst.sections.formats.images import find_image
from mclst.sections.formats.source import SectionSource, list_folder
from mclst.sections.section import Section
from mclst.sections.tables.spots import POSITIONS, positions_file, read_spots
from mclst.sections.tables.synonyms import synonyms_of
from mclst.sections.tenx.bins import pool_bins
from mclst.sections.tenx.matrix import Matrix, is_matrix_folder, read_matrix

MATRIX = "filtered_feature_bc_matrix"


def find(folder: Path, bins: str | None = None) -> dict[str, SectionSource]:
    """Find the sections of a folder: the folder itself, or its sub-folders, each named after its folder.

    bins: of Visium HD, µm of a bin or "cells".
    """
    source = source_of(folder, bins)
    if source is not None:
        return {source.name: source}
    sources = [source_of(entry, bins) for entry in list_folder(folder) if entry.is_dir()]
    return {source.name: source for source in sources if source is not None}


def source_of(folder: Path, bins: str | None = None) -> SectionSource | None:
    """Describe a Space Ranger folder (or one that holds `outs/`) as a section; None if it has no matrix.

    The .h5 matrix is preferred to the matrix folder: Space Ranger writes the same into both.
    """
    top = visium_hd.top_of(folder)
    if top is not None and _matrix(folder) is None:
        return _of_visium_hd(folder, top, bins)
    outs = folder if _matrix(folder) is not None else folder / "outs"
    matrix = _matrix(outs)
    if matrix is None:
        return None
    name = _name(folder)
    spots = positions_file(outs) if _has_positions(outs) else None
    places = tuple(dict.fromkeys((outs, folder, folder.parent, folder.parent / "images")))
    return SectionSource(name, "space-ranger", matrix, spots, find_image(name, places), places=places)


def lacks_matrix(folder: Path) -> bool:
    """Whether a folder is Space Ranger's but for its counts."""
    places = (folder, folder / "outs")
    return any(map(_has_positions, places)) and all(_matrix(place) is None for place in places)


def _has_positions(outs: Path) -> bool:
    return any((outs / part / file).is_file() for part in ("spatial", ".") for file in POSITIONS)


def _name(folder: Path) -> str:
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "outs" else resolved.name


def _of_visium_hd(folder: Path, top: Path, bins: str | None) -> SectionSource:
    """Describe the chosen bins or cells as a section, named after the top folder."""
    inner, factor = visium_hd.choose_folder(top, visium_hd.DEFAULT_BIN if bins is None else bins)
    name = _name(folder)
    places = tuple(dict.fromkeys((top, folder, folder.parent, folder.parent / "images")))
    image = find_image(name, places)
    if bins == visium_hd.CELLS:
        return visium_hd.cell_source(name, inner, image, places)
    matrix = _matrix(inner)
    if matrix is None:
        raise SectionError(f"{inner}: there is no {MATRIX}.h5; the folder is incomplete")
    return SectionSource(
        name, "space-ranger", matrix, positions_file(inner), image, places=places, pooled=factor
    )


def read(source: SectionSource) -> Section:
    """Read a section: rows in the order of the matrix's barcodes, coordinates joined by barcode.

    Genes are the features of type Gene Expression, by symbol; a symbol may appear twice.
    Raises SectionError if a file is damaged or a barcode has no coordinates.
    """
    if source.pooled > 1 and source.spots is not None:
        matrix, array_xy, xy_px = pool_bins(source.path, source.spots, source.pooled)
        return _section(source, matrix, array_xy, xy_px)
    matrix = read_matrix(source.path)
    require_unique_spots(matrix.spot, source.path)
    if source.spots is None:
        return _section(source, matrix, None, None)
    return _section(source, matrix, *_coordinates(source.spots, source.path, matrix.spot))


def _section(
    source: SectionSource,
    matrix: Matrix,
    array_xy: NDArray[np.int64] | None,
    xy_px: NDArray[np.float64] | None,
) -> Section:
    return Section(
        source.name,
        source.path,
        matrix.genes,
        matrix.spot,
        counts_csr(matrix.counts, source.path, matrix.spot, matrix.genes),
        array_xy,
        xy_px,
        source.image,
        synonyms=synonyms_of(matrix.genes.tolist(), [matrix.ids.tolist()]),
    )


def _matrix(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    tables = [
        entry for entry in list_folder(folder) if entry.name.endswith(f"{MATRIX}.h5") and entry.is_file()
    ]
    if len(tables) > 1:
        raise SectionError(f"{tables[0]} and {tables[1]} both are counts; keep one in a folder")
    if tables:
        return tables[0]
    matrix_folder = folder / MATRIX
    return matrix_folder if is_matrix_folder(matrix_folder) else None


def _coordinates(
    positions: Path, matrix: Path, spot: NDArray[np.str_]
) -> tuple[NDArray[np.int64] | None, NDArray[np.float64]]:
    if positions.name == visium_hd.CELL_OUTLINES:
        return None, visium_hd.cell_centers(positions, matrix, spot)
    spots = read_spots(positions, all_spots=True)
    rows = pd.Index(spots.id).get_indexer(pd.Index(spot))
    if (rows < 0).any():
        missing = str(spot[np.argmax(rows < 0)])
        raise SectionError(
            f"{positions}: {np.count_nonzero(rows < 0)} of {len(spot)} barcodes of {matrix.name} have no "
            f"coordinates, the first is {missing}; the files do not belong together"
        )
    return (None if spots.array_xy is None else spots.array_xy[rows]), spots.xy_px[rows]
