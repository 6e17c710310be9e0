"""Moran's I: how spatially structured each gene is over the nearest neighbors of its spots."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

N_NEIGHBORS = 6
BLOCK_BYTES = 128 << 20
"""Expression read at a time, since a map may be larger than memory."""
MOST_BY_DISTANCES = 2500
"""Spots up to which all distances take less time than scipy takes to load."""
DISTANCES = 1 << 21
"""Distances computed at a time."""
LAG_VALUES = 1 << 18
"""Neighbors' values gathered at a time: as many as a processor's cache holds."""


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

    Notes
    -----
    I = Σᵢⱼ wᵢⱼ zᵢ zⱼ / Σᵢ zᵢ², with z the deviations from the mean and row-standardized weights w
    (Moran 1950; Cliff & Ord 1981).
    """
    present = ~nan_rows(values)
    n = int(np.count_nonzero(present))
    result = np.full(values.shape[1], np.nan)
    if n < 3:
        return result
    neighbors = nearest_spots(xy[present], min(n_neighbors, n - 1))[1]
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
        moran[varies] = _products(z, neighbors) / np.einsum("ng,ng->g", z, z)
        result[start : start + genes] = moran
    return result


def nan_rows(values: NDArray[Any] | h5py.Dataset) -> NDArray[np.bool_]:
    """Bool [n]: rows of values [n, G] that hold a NaN; reads some rows at a time."""
    rows = max(1, BLOCK_BYTES // (8 * values.shape[1]))
    has_nan = np.zeros(values.shape[0], np.bool_)
    for start in range(0, len(has_nan), rows):
        has_nan[start : start + rows] = np.isnan(values[start : start + rows]).any(axis=1)
    return has_nan


def _products(z: NDArray[np.float64], neighbors: NDArray[np.intp]) -> NDArray[np.float64]:
    """Σᵢⱼ wᵢⱼ zᵢ zⱼ of each column of z [n, G]; neighbors: int [n, k], each of weight 1 / k."""
    n, k = neighbors.shape
    sums: NDArray[np.float64] = np.zeros(z.shape[1])
    step = max(1, LAG_VALUES // max(1, k * z.shape[1]))
    for start in range(0, n, step):
        lag = z[neighbors[start : start + step]].sum(axis=1)
        sums += np.einsum("ng,ng->g", z[start : start + step], lag)
    return np.asarray(sums / k)


def nearest_spots(xy: NDArray[np.float64], k: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The k nearest other spots of each spot.

    Parameters
    ----------
    xy : float64 [n, 2]
        Positions in any unit, n > k.
    k : int
        At least 1.

    Returns
    -------
    distance : float64 [n, k]
        In the unit of `xy`, ascending.
    index : int [n, k]
        Never the spot's own. Which of equally near spots are chosen is not specified.
    """
    return _by_distances(xy, k) if len(xy) <= MOST_BY_DISTANCES else _by_tree(xy, k)


def _by_distances(xy: NDArray[np.float64], k: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    n = len(xy)
    distance, index = np.empty((n, k)), np.empty((n, k), np.intp)
    step = max(1, DISTANCES // n)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        apart = np.hypot(*(xy[rows, None] - xy[None]).transpose(2, 0, 1))
        apart[rows - start, rows] = np.inf
        nearest = np.argpartition(apart, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(apart, nearest, axis=1)
        order = np.argsort(near, axis=1, kind="stable")
        distance[rows] = np.take_along_axis(near, order, axis=1)
        index[rows] = np.take_along_axis(nearest, order, axis=1)
    return distance, index


def _by_tree(xy: NDArray[np.float64], k: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    from scipy.spatial import cKDTree

    distance, index = map(np.asarray, cKDTree(xy).query(xy, k=k + 1))
    # Coinciding spots may find each other before themselves, or not find themselves at all.
    others = index != np.arange(len(xy))[:, None]
    others[others.all(axis=1), -1] = False
    return distance[others].reshape(-1, k), index[others].reshape(-1, k)


def sort_by_morans_i(moran: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the genes [G] by Moran's I, largest first, NaN last."""
    return np.argsort(-np.where(np.isnan(moran), -np.inf, moran), kind="stable")
