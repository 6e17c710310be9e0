"""Which genes are spatially structured: Moran's I over the nearest spots."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree

NEIGHBOURS = 6
BLOCK_BYTES = 128 << 20
"""Expression held at a time: a map may be larger than memory."""


def morans_i(
    values: NDArray[Any] | h5py.Dataset, xy: NDArray[np.float64], neighbours: int = NEIGHBOURS
) -> NDArray[np.float64]:
    """Moran's I of each gene over the spots: float64 [G], NaN for a constant gene or fewer than three spots.

    values: [n, G], read some genes at a time; rows with a NaN are left out. xy: [n, 2], any unit. neighbours: nearest
    other spots, each of weight 1/neighbours (binary weights, row-standardised); all other spots where there are fewer.
    I = Σᵢⱼ wᵢⱼ zᵢ zⱼ / Σᵢ zᵢ², z the deviations from the mean, weights summing to n. Source: Moran 1950;
    Cliff & Ord 1981.
    """
    present = ~blank_rows(values)
    n = int(np.count_nonzero(present))
    result = np.full(values.shape[1], np.nan)
    if n < 3:
        return result
    weights = _neighbour_weights(xy[present], min(neighbours, n - 1))
    genes = max(1, BLOCK_BYTES // (8 * n))
    for start in range(0, values.shape[1], genes):
        block = np.asarray(values[:, start : start + genes])
        if n < len(present):
            block = block[present]
        varies = (block != block[:1]).any(axis=0)
        # In place: a block of a large map is most of the memory that a run takes.
        z = block[:, varies].astype(np.float64)
        moran = np.full(block.shape[1], np.nan)
        del block
        z -= z.mean(axis=0)
        z /= np.maximum(z.max(axis=0), -z.min(axis=0))
        around = np.asarray(weights @ z)
        around *= z
        z *= z
        moran[varies] = around.sum(axis=0) / z.sum(axis=0)
        result[start : start + genes] = moran
    return result


def blank_rows(values: NDArray[Any] | h5py.Dataset) -> NDArray[np.bool_]:
    """Rows [n] of values [n, G] that hold a NaN, read some rows at a time."""
    rows = max(1, BLOCK_BYTES // (8 * values.shape[1]))
    blank = np.zeros(values.shape[0], np.bool_)
    for start in range(0, len(blank), rows):
        blank[start : start + rows] = np.isnan(values[start : start + rows]).any(axis=1)
    return blank


def _neighbour_weights(xy: NDArray[np.float64], neighbours: int) -> sp.csr_matrix:
    n = len(xy)
    found = np.asarray(cKDTree(xy).query(xy, k=neighbours + 1)[1])
    # Spots in one place may find each other before themselves, or not find themselves at all.
    others = found != np.arange(n)[:, None]
    others[others.all(axis=1), -1] = False
    rows = np.repeat(np.arange(n), neighbours)
    return sp.csr_matrix((np.full(len(rows), 1 / neighbours), (rows, found[others])), shape=(n, n))


def most_structured_first(moran: NDArray[np.float64]) -> NDArray[np.intp]:
    """Places of the genes [G] in the order of their Moran's I, largest first; those without one last."""
    return np.argsort(-np.where(np.isnan(moran), -np.inf, moran), kind="stable")
