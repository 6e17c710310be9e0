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
UNLIKE, COPY = 0.5, 0.9
"""Absolute Pearson r with a chosen gene: unlike it up to the first, a repetition of it beyond the second."""


def distinct_genes(
    values: NDArray[Any] | h5py.Dataset, candidates: Sequence[int], count: int
) -> list[tuple[int, float]]:
    """Choose genes greedily: the first, then always the next that is little correlated with all chosen.

    The next is the first with |r| up to 0.5; where there is none, the one with the smallest, up to 0.9. What
    is left then repeats what is chosen.

    Parameters
    ----------
    values : array or HDF5 dataset [n, G]
        Expression; rows with a NaN are left out. Of more than 20,000 rows, every k-th counts.
    candidates : sequence of int
        Columns, the best first; only the first 400 are looked at.
    count : int
        Most to choose.

    Returns
    -------
    list of (int, float)
        Columns in the order in which they were chosen, each with its largest |r| with one before it.
    """
    candidates = list(candidates[:CANDIDATES])
    chosen: list[tuple[int, float]] = []
    if not candidates or count < 1:
        return chosen
    columns = _columns(values, candidates)
    unit = columns - columns.mean(axis=0) if len(columns) else columns
    length = np.linalg.norm(unit, axis=0)
    unit /= np.where(length > 0, length, 1.0)
    most_alike = np.zeros(len(candidates))
    while len(chosen) < count and most_alike.min() <= COPY:
        unlike = np.flatnonzero(most_alike <= UNLIKE)
        number = int(unlike[0] if len(unlike) else most_alike.argmin())
        chosen.append((candidates[number], float(most_alike[number])))
        most_alike = np.maximum(most_alike, np.abs(unit.T @ unit[:, number]))
        most_alike[number] = np.inf
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
