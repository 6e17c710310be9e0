"""Pool the bins of Visium HD to larger ones, reading the matrix in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mclst.sections.counts import counts_csr
from mclst.sections.errors import SectionError
from mclst.sections.tables.parquet import stream_columns
from mclst.sections.tables.spots import read_spots
from mclst.sections.tenx.matrix import Matrix, MatrixFile, open_matrix

ENTRIES_AT_ONCE = 4_000_000
NAMES_AT_ONCE = 1_000_000
NAME = b"s_000um_00000_00000"
"""A bin's barcode, before its suffix: µm, row and column of the array."""
SIZE, ROW, COLUMN = slice(2, 5), slice(8, 13), slice(14, 19)
KEY_BITS = 20
"""Rows and columns have five digits."""
POSITIONS = ("array_col", "array_row", "pxl_col_in_fullres", "pxl_row_in_fullres")


class PooledBins(NamedTuple):
    """Counts of squares; their places (column, row) int64 [n, 2]; centers in level-0 px, float64 [n, 2]."""

    counts: Matrix
    places: NDArray[np.int64]
    xy_px: NDArray[np.float64]


def pool_bins(path: Path, positions: Path, factor: int) -> PooledBins:
    """Sum squares of `factor` x `factor` bins; bins that are not listed count as empty.

    Centers lie on the array's own grid, fitted to the positions of all bins. Memory: the pooled counts, a
    block of the matrix, and some 50 bytes per bin.

    Parameters
    ----------
    path : Path
        filtered_feature_bc_matrix.h5.
    positions : Path
        tissue_positions.parquet, or another table of positions.
    factor : int

    Raises
    ------
    SectionError
        If a file is damaged or holds no bins.
    """
    if not path.is_file():
        raise SectionError(f"{path}: pooling needs filtered_feature_bc_matrix.h5; copy it again")
    with open_matrix(path) as matrix:
        size, bins = _array_places(matrix)
        counts, places = _sum_squares(matrix, bins // factor)
        genes, ids = matrix.genes, matrix.ids
    middle = places * factor + (factor - 1) / 2
    names = [f"s_{size * factor:03d}um_{row:05d}_{column:05d}-1" for column, row in places.tolist()]
    xy_px = np.column_stack([middle, np.ones(len(middle))]) @ _fit_array(positions)
    return PooledBins(Matrix(counts, np.array(names), genes, ids), places, xy_px)


def _array_places(matrix: MatrixFile) -> tuple[int, NDArray[np.int32]]:
    """µm of a bin, and array places (column, row) int32 [n, 2], both from the barcodes."""
    places = np.empty((matrix.spots, 2), np.int32)
    sizes: set[int] = set()
    for start in range(0, matrix.spots, NAMES_AT_ONCE):
        names = _names(matrix, slice(start, min(start + NAMES_AT_ONCE, matrix.spots)))
        letters = np.zeros((len(names), len(NAME)), np.uint8)
        given = names.view(np.uint8).reshape(len(names), -1)[:, : len(NAME)]
        letters[:, : given.shape[1]] = given
        template = np.frombuffer(NAME, np.uint8)
        digits = letters - np.uint8(ord("0"))
        other = np.where(template == ord("0"), digits > 9, letters != template).any(axis=1)
        if other.any():
            name = names[int(np.argmax(other))].decode("utf-8", "replace")[:40]
            raise SectionError(f"{matrix.path}: {name!r} is no bin of Visium HD to pool; leave --bin out")
        for axis, part in enumerate((COLUMN, ROW)):
            places[start : start + len(names), axis] = digits[:, part] @ np.array([10_000, 1000, 100, 10, 1])
        sizes.update(np.unique(digits[:, SIZE] @ np.array([100, 10, 1])).tolist())
    if len(sizes) != 1:
        raise SectionError(f"{matrix.path}: the bins are of {len(sizes)} sizes; give bins of one size")
    return sizes.pop(), places


def _names(matrix: MatrixFile, rows: slice) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(matrix.group["barcodes"][rows].astype(np.bytes_))


def _sum_squares(matrix: MatrixFile, squares: NDArray[np.int32]) -> tuple[sp.csr_matrix, NDArray[np.int64]]:
    """Counts [s, g] of the squares, and their places (column, row) [s, 2], sorted by row, then column.

    squares: (column, row) of each bin's, int32 [n, 2]. A row of squares is complete once its last bin is
    read. Bins come sorted by row, so few squares wait.
    """
    last_of_row = np.zeros(int(squares[:, 1].max()) + 1, np.int64)
    last_of_row[squares[:, 1]] = np.arange(len(squares))  # of bins in one row the last one stays
    keys = squares[:, 1].astype(np.int64) << KEY_BITS | squares[:, 0]
    nothing: Any = np.zeros((0, len(matrix.genes)), np.float32)
    waiting, waiting_keys = sp.csr_matrix(nothing), keys[:0]
    parts: list[sp.csr_matrix] = []
    part_keys: list[NDArray[np.int64]] = []
    for rows, block in matrix.blocks(ENTRIES_AT_ONCE):
        names = _names(matrix, rows).astype(np.str_)
        checked = counts_csr(block, matrix.path, names, matrix.genes)
        unique, member = np.unique(np.concatenate([waiting_keys, keys[rows]]), return_inverse=True)
        ones = np.ones(len(member), np.float32)
        shape = (len(unique), len(member))
        summing = sp.csr_matrix((ones, (member.ravel(), np.arange(len(member)))), shape=shape)
        summed = sp.csr_matrix(summing @ sp.vstack([waiting, checked], format="csr"))
        complete = last_of_row[unique >> KEY_BITS] < rows.stop
        parts.append(summed[np.flatnonzero(complete)])
        part_keys.append(unique[complete])
        waiting, waiting_keys = summed[np.flatnonzero(~complete)], unique[~complete]
    counts, order = _stack(parts), np.concatenate(part_keys)
    if (np.diff(order) < 0).any():  # bins that were not sorted
        by_place = np.argsort(order)
        counts, order = counts[by_place], order[by_place]
    counts.sort_indices()
    return counts, np.column_stack([order & ((1 << KEY_BITS) - 1), order >> KEY_BITS])


def _stack(parts: list[sp.csr_matrix]) -> sp.csr_matrix:
    """Stack rows, and give up each part once it is copied, so that memory holds the counts once."""
    rows, columns = sum(part.shape[0] for part in parts), parts[0].shape[1]
    indptr = np.zeros(rows + 1, np.int64)
    entries = sum(part.nnz for part in parts)
    data, indices = np.empty(entries, np.float32), np.empty(entries, np.int32)
    row = at = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        data[at : at + part.nnz], indices[at : at + part.nnz] = part.data, part.indices
        indptr[row + 1 : row + 1 + part.shape[0]] = at + part.indptr[1:]
        row, at = row + part.shape[0], at + part.nnz
    return sp.csr_matrix((data, indices, indptr), shape=(rows, columns))


def _fit_array(positions: Path) -> NDArray[np.float64]:
    """Least-squares affine map of array places to level-0 px, float64 [3, 2]: (column, row, 1) @ it = (x, y).

    Sums of products are taken around the first bins' means, which keeps all digits.
    """
    products, moments, offset = np.zeros((3, 3)), np.zeros((3, 2)), None
    for block in _position_blocks(positions):
        values = block[np.isfinite(block).all(axis=1)]
        if not len(values):
            continue
        offset = values.mean(axis=0) if offset is None else offset
        values -= offset
        design = np.column_stack([values[:, :2], np.ones(len(values))])
        products += design.T @ design
        moments += design.T @ values[:, 2:]
    if offset is None or np.linalg.matrix_rank(products) < 3:
        raise SectionError(f"{positions}: the bins lie on one line, so they are no array; not pooled")
    transform = np.asarray(np.linalg.solve(products, moments), np.float64)
    transform[2] += offset[2:] - offset[:2] @ transform[:2]
    return transform


def _position_blocks(positions: Path) -> Iterator[NDArray[np.float64]]:
    """Column, row, x and y of bins, float64 [n, 4]."""
    if positions.suffix == ".parquet":
        for columns in stream_columns(positions, [], POSITIONS):
            yield np.column_stack(columns).astype(np.float64)
        return
    spots = read_spots(positions, all_spots=True)
    if spots.array_xy is None:
        raise SectionError(f"{positions}: there is no array_row and array_col; the bins are not pooled")
    yield np.column_stack([spots.array_xy, spots.xy_px])
