"""Reader of Space Ranger output: `filtered_feature_bc_matrix` as .h5 or matrix folder, and `spatial/`."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.formats import visium_hd
from mclst.sections.formats.counts import counts_csr, require_unique_spots
from mclst.sections.formats.images import find_image
from mclst.sections.formats.source import SectionSource, list_folder
from mclst.sections.hdf5 import name_array, open_hdf5
from mclst.sections.section import Section
from mclst.sections.tables.spots import POSITIONS, positions_file, read_spots
from mclst.sections.tables.synonyms import synonyms_of
from mclst.sections.tables.text_file import read_text

MATRIX = "filtered_feature_bc_matrix"
GENE_EXPRESSION = "Gene Expression"

Features = tuple[Any, NDArray[np.str_], NDArray[np.str_], NDArray[np.str_]]
"""(counts [n, g], spots [n], gene symbols [g], gene ids [g], "" where unknown)."""


def find(folder: Path, bins: str = visium_hd.DEFAULT_BIN) -> dict[str, SectionSource]:
    """Find the sections of a folder: the folder itself, or its sub-folders, each named after its folder.

    bins: of Visium HD, µm of a bin or "cells".
    """
    source = source_of(folder, bins)
    if source is not None:
        return {source.name: source}
    sources = [source_of(entry, bins) for entry in list_folder(folder) if entry.is_dir()]
    return {source.name: source for source in sources if source is not None}


def source_of(folder: Path, bins: str = visium_hd.DEFAULT_BIN) -> SectionSource | None:
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
    has_positions = any((outs / part / file).is_file() for part in ("spatial", ".") for file in POSITIONS)
    spots = positions_file(outs) if has_positions else None
    places = tuple(dict.fromkeys((outs, folder, folder.parent, folder.parent / "images")))
    return SectionSource(name, "space-ranger", matrix, spots, find_image(name, places), places=places)


def _name(folder: Path) -> str:
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "outs" else resolved.name


def _of_visium_hd(folder: Path, top: Path, bins: str) -> SectionSource:
    """Describe the chosen bins or cells as a section, named after the top folder."""
    inner, factor = visium_hd.choose_folder(top, bins)
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
    raw, spot, genes, ids = _read_h5(source.path) if source.path.is_file() else _read_folder(source.path)
    require_unique_spots(spot, source.path)
    counts = counts_csr(raw, source.path, spot, genes)
    array_xy, xy_px = (None, None) if source.spots is None else _coordinates(source.spots, source.path, spot)
    section = Section(
        source.name,
        source.path,
        genes,
        spot,
        counts,
        array_xy,
        xy_px,
        source.image,
        synonyms=synonyms_of(genes.tolist(), [ids.tolist()]),
    )
    return visium_hd.pool(section, source.pooled)


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
    return matrix_folder if _existing(matrix_folder, "matrix.mtx") else None


def _one_of(folder: Path, *names: str) -> Path:
    """Find the one file of a matrix folder with one of these names, plain or .gz."""
    paths = _existing(folder, *names)
    if len(paths) > 1:
        raise SectionError(f"{paths[0]} and {paths[1]} both exist; keep one")
    if not paths:
        raise SectionError(
            f"{folder}: there is no {' or '.join(names)} (or .gz); the matrix folder is incomplete"
        )
    return paths[0]


def _existing(folder: Path, *names: str) -> list[Path]:
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    return [path for path in candidates if path.is_file()]


def _read_h5(path: Path) -> Features:
    with open_hdf5(path, "a Space Ranger matrix") as file:
        if "matrix/features/name" not in file:
            raise SectionError(f"{path}: there is no matrix/features/name; give a matrix of Space Ranger")
        group = file["matrix"]
        features, barcodes = (int(size) for size in group["shape"][:])
        spot, genes = name_array(group["barcodes"][:], path), name_array(group["features/name"][:], path)
        if (features, barcodes) != (len(genes), len(spot)):
            raise SectionError(_size_mismatch(path, features, barcodes, len(genes), len(spot)))
        _check_entries(path, group["data"].size, features, barcodes)
        typed = "feature_type" in group["features"]
        kinds = name_array(group["features/feature_type"][:], path) if typed else None
        identified = "id" in group["features"]
        ids = name_array(group["features/id"][:], path) if identified else np.full(len(genes), "", np.str_)
        parts = (group["data"][:], group["indices"][:], group["indptr"][:])
        matrix = sp.csr_matrix(parts, shape=(barcodes, features))
        matrix.check_format(full_check=True)
    return _gene_expression(path, matrix, spot, genes, ids, kinds)


def _read_folder(folder: Path) -> Features:
    path, barcodes = _one_of(folder, "matrix.mtx"), _one_of(folder, "barcodes.tsv")
    features = _one_of(folder, "features.tsv", "genes.tsv")
    spot = np.array([cells[0] for cells in _lines(barcodes)], dtype=np.str_)
    rows = _lines(features)
    short = next((number for number, cells in enumerate(rows, start=1) if len(cells) < 2), None)
    if short is not None:
        raise SectionError(
            f"{features}: line {short} has no gene name; give an id, a name and a type by tabs"
        )
    ids, genes = (np.array([cells[column] for cells in rows], dtype=np.str_) for column in (0, 1))
    typed = all(len(cells) > 2 for cells in rows)  # the old genes.tsv has no types
    kinds = np.array([cells[2] for cells in rows], dtype=np.str_) if typed else None
    return _gene_expression(path, _read_mtx(path, len(genes), len(spot)), spot, genes, ids, kinds)


def _read_mtx(path: Path, features: int, barcodes: int) -> Any:
    """Read features x barcodes as barcodes x features."""
    try:
        # The header is checked before scipy allocates memory for what it claims.
        rows, columns, entries, *_ = scipy.io.mminfo(path)
        if (rows, columns) != (features, barcodes):
            raise SectionError(_size_mismatch(path, rows, columns, features, barcodes))
        _check_entries(path, entries, rows, columns)
        return sp.csr_matrix(scipy.io.mmread(path).T)
    except (OSError, EOFError, ValueError, TypeError, OverflowError, zlib.error) as error:
        if isinstance(error, SectionError):
            raise
        raise SectionError(f"{path}: the matrix cannot be read ({error})") from error


def _check_entries(path: Path, entries: int, rows: int, columns: int) -> None:
    if entries > rows * columns:
        raise SectionError(
            f"{path}: the matrix claims {entries} entries for {rows} x {columns}; it is damaged"
        )


def _size_mismatch(
    path: Path, features: int, barcodes: int, listed_features: int, listed_barcodes: int
) -> str:
    return (
        f"{path}: the matrix is {features} features x {barcodes} barcodes, and the lists hold "
        f"{listed_features} and {listed_barcodes}; the files do not belong together"
    )


def _gene_expression(
    path: Path,
    matrix: Any,
    spot: NDArray[np.str_],
    genes: NDArray[np.str_],
    ids: NDArray[np.str_],
    kinds: NDArray[np.str_] | None,
) -> Features:
    """Keep gene expression features; drop antibodies and other captures."""
    lengths = {len(genes), len(ids), len(genes if kinds is None else kinds)}
    if matrix.shape != (len(spot), len(genes)) or len(lengths) > 1:
        raise SectionError(_size_mismatch(path, matrix.shape[1], matrix.shape[0], len(genes), len(spot)))
    if kinds is None or (kinds == GENE_EXPRESSION).all():
        return matrix, spot, genes, ids
    keep = np.flatnonzero(kinds == GENE_EXPRESSION)
    if not len(keep):
        raise SectionError(f"{path}: no feature is of type {GENE_EXPRESSION}; give a gene expression matrix")
    return matrix[:, keep], spot, genes[keep], ids[keep]


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


def _lines(path: Path) -> list[list[str]]:
    text = read_text(path, may_be_gzip=True).replace("\r\n", "\n").rstrip("\n")
    return [[cell.strip() for cell in line.split("\t")] for line in text.split("\n")]
