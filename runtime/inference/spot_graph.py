"""Neighbor graph of a slide's spots."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.bundle.manifest import Graph

GRID = 2.0
"""Array steps beyond which "grid" drops a neighbor."""
ROWS_AT_ONCE = 256


def nearest_spots(array_xy: NDArray[np.int64], graph: Graph) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find each spot's nearest other spots.

    Parameters
    ----------
    array_xy : int64 array [n, 2]
        Array coordinates.
    graph : Graph
        Number K of neighbors, and pruning.

    Returns
    -------
    neighbors : int64 array [n, K]
        Nearest first; the spot itself where there is none (fewer spots than K, or pruned).
    linked : float32 array [n, K]
        1 for a neighbor, 0 for none.

    Notes
    -----
    Directed and Euclidean, as `calcADJ` of Hist2ST and THItoGene. Equal distances go to the lower row; the
    published code leaves them to an unstable sort.
    """
    n, k = len(array_xy), graph.neighbors
    neighbors = np.repeat(np.arange(n)[:, None], k, axis=1)
    distance = np.full((n, k), np.inf)
    reach = min(k, n - 1)
    for start in range(0, n if reach else 0, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, n))
        squared = ((array_xy[rows, None] - array_xy[None]) ** 2).sum(-1)
        # Integers, so that distance and row form one key without ties.
        key = squared * n + np.arange(n)
        key[np.arange(len(rows)), rows] = np.iinfo(np.int64).max
        nearest = np.sort(np.partition(key, reach - 1, axis=1)[:, :reach], axis=1)
        neighbors[rows, :reach] = nearest % n
        distance[rows, :reach] = np.sqrt(nearest // n)
    linked = np.isfinite(distance)
    if graph.prune == "grid":
        linked &= distance <= GRID
    elif graph.prune == "std" and reach:
        known = distance[:, :reach]
        linked &= distance <= (known.mean(1) + known.std(1))[:, None]
    neighbors[~linked] = np.nonzero(~linked)[0]
    return neighbors, linked.astype(np.float32)
