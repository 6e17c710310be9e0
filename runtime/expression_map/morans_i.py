"""Moran's I: how spatially structured each gene is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import scipy.sparse as sp

N_NEIGHBORS = 6
BLOCK_BYTES = 128 << 20
"""Expression read at a time, since a map may be larger than memory."""


def morans_i(
    values: NDArray[Any] | h5py.Dataset, xy: NDArray[np.float64], n_neighbors: int = N_NEIGHBORS
) -> NDArray[np.float64]:
    """Moran's I of each gene over the spots.

    Parameters
    ----------
    values : array or HDF5 dataset [n, G]
        Expression, read some genes at a time; rows with a NaN are left out.
    xy : float64 [n, 2]
        Spot positions in any unit.
    n_neighbors : int
        Nearest other spots, each of weight 1 / n_neighbors; all other spots if there are fewer.

    Returns
    -------
    float64 [G]
        NaN for a constant gene, or with fewer than three spots.

    Notes ----- I = Σᵢⱼ wᵢⱼ zᵢ zⱼ / Σᵢ zᵢ², with z the deviations from the mean and row-standardized weights w
    (Moran 1950; Cliff & Ord 1981).
    """
    present = ~nan_rows(values)
    n = int(np.count_nonzero(present))
    result = np.full(values.shape[1], np.nan)
    if n < 3:
        return result
    weights = _neighbor_weights(xy[present], min(n_neighbors, n - 1))
    genes = max(1, BLOCK_BYTES // (8 * n))
    for start in range(0, values.shape[1], genes):
        block = np.asarray(values[:, start : start + genes])
        if n < len(present):
            block = block[present]
        varies = (block != block[:1]).any(axis=0)
        # In place: a block is most of the memory of a run on a large map.
        z = block[:, varies].astype(np.float64)
        moran = np.full(block.shape[1], np.nan)
        del block
        z -= z.mean(axis=0)
        z /= np.maximum(z.max(axis=0), -z.min(axis=0))
        lag = np.asarray(weights @ z)
        lag *= z
        z *= z
        moran[varies] = lag.sum(axis=0) / z.sum(axis=0)
        result[start : start + genes] = moran
    return result


def nan_rows(values: NDArray[Any] | h5py.Dataset) -> NDArray[np.bool_]:
    """Bool [n]: rows of values [n, G] that hold a NaN; reads some rows at a time."""
    rows = max(1, BLOCK_BYTES // (8 * values.shape[1]))
    has_nan = np.zeros(values.shape[0], np.bool_)
    for start in range(0, len(has_nan), rows):
        has_nan[start : start + rows] = np.isnan(values[start : start + rows]).any(axis=1)
    return has_nan


def _neighbor_weights(xy: NDArray[np.float64], n_neighbors: int) -> sp.csr_matrix:
    import scipy.sparse as sp  # a run needs it only at its end
    from scipy.spatial import cKDTree

    n = len(xy)
    nearest = np.asarray(cKDTree(xy).query(xy, k=n_neighbors + 1)[1])
    # Coinciding spots may find each other before themselves, or not find themselves at all.
    others = nearest != np.arange(n)[:, None]
    others[others.all(axis=1), -1] = False
    rows = np.repeat(np.arange(n), n_neighbors)
    return sp.csr_matrix((np.full(len(rows), 1 / n_neighbors), (rows, nearest[others])), shape=(n, n))


def sort_by_morans_i(moran: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the genes [G] by Moran's I, largest first, NaN last."""
    return np.argsort(-np.where(np.isnan(moran), -np.inf, moran), kind="stable")
