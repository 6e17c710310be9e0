"""Choose structured genes that show different patterns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.expression_map.morans_i import BLOCK_BYTES

CANDIDATES = 400
MOST_SPOTS = 20_000
ALIKE = (0.5, 0.7, 0.85, 0.95)
"""Absolute Pearson r with the chosen genes up to which the next may go, relaxed while too few are left."""


def distinct_genes(values: NDArray[Any] | h5py.Dataset, candidates: Sequence[int], count: int) -> list[int]:
    """Choose genes greedily: the first, then always the next that is little correlated with all chosen.

    Parameters
    ----------
    values : array or HDF5 dataset [n, G]
        Expression; rows with a NaN are left out. Of more than 20,000 rows, every k-th counts.
    candidates : sequence of int
        Columns, the best first; only the first 400 are looked at.
    count : int
        How many to choose, as far as there are candidates.

    Returns
    -------
    list of int
        Columns, in the order of the candidates within each limit of correlation.
    """
    candidates = list(candidates[:CANDIDATES])
    chosen: list[int] = []
    if not candidates or count < 1:
        return chosen
    columns = _columns(values, candidates)
    unit = columns - columns.mean(axis=0) if len(columns) else columns
    length = np.linalg.norm(unit, axis=0)
    unit /= np.where(length > 0, length, 1.0)
    most_alike = np.zeros(len(candidates))
    left = np.ones(len(candidates), np.bool_)
    for limit in (*ALIKE, np.inf):
        while len(chosen) < count and (fits := np.flatnonzero(left & (most_alike <= limit))).size:
            number = int(fits[0])
            chosen.append(candidates[number])
            left[number] = False
            most_alike = np.maximum(most_alike, np.abs(unit.T @ unit[:, number]))
    return chosen


def _columns(values: NDArray[Any] | h5py.Dataset, columns: Sequence[int]) -> NDArray[np.float64]:
    step = -(-values.shape[0] // MOST_SPOTS)
    rows = step * max(1, BLOCK_BYTES // (4 * values.shape[1] * step))
    parts = [
        np.asarray(values[start : start + rows : step], np.float64)[:, columns]
        for start in range(0, values.shape[0], rows)
    ]
    every = np.concatenate(parts)
    return every[~np.isnan(every).any(axis=1)]
