"""Who is whose neighbour on a slide, for systems with a graph over its spots."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.bundle.manifest import Graph

GRID = 2.0
"""Array steps beyond which "grid" drops a neighbour."""
ROWS_AT_ONCE = 256


def nearest_spots(array_xy: NDArray[np.int64], graph: Graph) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest other spots of each: neighbours int64 [n, K], linked float32 [n, K], nearest first.

    array_xy: int64 [n, 2]. A place without a neighbour (fewer spots than K, or pruned) holds the spot itself and a 0 in
    `linked`. Equal distances go to the lower row; the published code leaves them to an unstable sort.
    Source: `calcADJ` of Hist2ST and THItoGene, Euclidean, directed.
    """
    n, k = len(array_xy), graph.neighbours
    neighbours = np.repeat(np.arange(n)[:, None], k, axis=1)
    distance = np.full((n, k), np.inf)
    reach = min(k, n - 1)
    for start in range(0, n if reach else 0, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, n))
        squared = ((array_xy[rows, None] - array_xy[None]) ** 2).sum(-1)
        # Whole numbers, so that distance and row make one key without ties.
        key = squared * n + np.arange(n)
        key[np.arange(len(rows)), rows] = np.iinfo(np.int64).max
        nearest = np.sort(np.partition(key, reach - 1, axis=1)[:, :reach], axis=1)
        neighbours[rows, :reach] = nearest % n
        distance[rows, :reach] = np.sqrt(nearest // n)
    linked = np.isfinite(distance)
    if graph.prune == "grid":
        linked &= distance <= GRID
    elif graph.prune == "std" and reach:
        some = distance[:, :reach]
        linked &= distance <= (some.mean(1) + some.std(1))[:, None]
    neighbours[~linked] = np.nonzero(~linked)[0]
    return neighbours, linked.astype(np.float32)
