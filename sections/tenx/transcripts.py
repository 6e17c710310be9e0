"""Count decoded transcripts in pseudo-spots: squares of a grid, or disks in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.tables.parquet import stream_columns

NAME, NUMBERS = "feature_name", ("x_location", "y_location", "qv")
MIN_QV = 20.0
"""Phred-scaled quality that 10x Genomics' own matrices ask for."""
MAX_UM = 1e6
KEY_BITS = 21
OFFSET = 1 << (KEY_BITS - 1)
PAIRS_AT_ONCE = 4_000_000


def count_transcripts(
    path: Path, genes: NDArray[np.str_], pitch: int, diameter: int | None = None
) -> tuple[sp.csr_matrix, NDArray[np.int64]]:
    """Count the transcripts of quality 20 and above.

    Parameters
    ----------
    path : Path
        transcripts.parquet of a Xenium bundle: feature_name, x_location, y_location in µm, qv.
    genes : ndarray of str, shape (g,)
        Features to count; others, such as controls, are left out.
    pitch : int
        µm between the centers, which are at (column + ½, row + ½) pitches.
    diameter : int, optional
        µm of a disk; transcripts of the square outside it are left out. None: the whole square.

    Returns
    -------
    counts : csr_matrix of float32, shape (n, g)
    places : ndarray of int64, shape (n, 2)
        Column and row of each pseudo-spot with at least one transcript, sorted by row, then column.

    Raises
    ------
    SectionError
        If the table is damaged, or nothing is left to count.

    Notes
    -----
    Memory: one block of rows, and the counts.
    """
    column_of = {gene: column for column, gene in reversed(list(enumerate(genes.tolist())))}
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    waiting: list[NDArray[np.int64]] = []
    for names, x, y, quality in stream_columns(path, [NAME], NUMBERS):
        gene = _columns(names, column_of)
        kept = (quality >= MIN_QV) & (gene >= 0)
        xy_um = np.column_stack([x[kept], y[kept]]).astype(np.float64)
        if not (np.abs(xy_um) <= MAX_UM).all():
            raise SectionError(
                f"{path}: a transcript has a location that is not finite or too far; export again"
            )
        place = np.floor(xy_um / pitch).astype(np.int64)
        gene = gene[kept]
        if diameter is not None:
            inside = np.square(xy_um - (place + 0.5) * pitch).sum(axis=1) <= (diameter / 2) ** 2
            place, gene = place[inside], gene[inside]
        key = (place[:, 1] + OFFSET) << KEY_BITS | (place[:, 0] + OFFSET)
        waiting.append(key * len(genes) + gene)
        if sum(map(len, waiting)) > max(PAIRS_AT_ONCE, len(pairs)):
            pairs, counts = _merge(pairs, counts, waiting)
    pairs, counts = _merge(pairs, counts, waiting)
    if not len(pairs):
        raise SectionError(
            f"{path}: no transcript of a gene has a qv of {MIN_QV:g} or more; nothing to count"
        )
    keys, spot = np.unique(pairs // len(genes), return_inverse=True)
    matrix = sp.csr_matrix(
        (counts.astype(np.float32), (spot.ravel(), pairs % len(genes))), shape=(len(keys), len(genes))
    )
    places = np.column_stack([(keys & ((1 << KEY_BITS) - 1)) - OFFSET, (keys >> KEY_BITS) - OFFSET])
    return matrix, places


def _columns(names: NDArray[np.object_], column_of: dict[str, int]) -> NDArray[np.int64]:
    """Column of each name's gene, -1 for none; names are text, or bytes of the first versions."""
    codes, different = pd.factorize(names)
    texts = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in different]
    columns = np.array([column_of.get(text, -1) for text in texts] + [-1], np.int64)
    return columns[codes]


def _merge(
    pairs: NDArray[np.int64], counts: NDArray[np.int64], waiting: list[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Add the waiting pairs, which this empties, to counted ones."""
    new, new_counts = np.unique(np.concatenate([*waiting, pairs[:0]]), return_counts=True)
    waiting.clear()
    merged, where = np.unique(np.concatenate([pairs, new]), return_inverse=True)
    weights = np.concatenate([counts, new_counts])
    return merged, np.bincount(where.ravel(), weights, minlength=len(merged)).astype(np.int64)
