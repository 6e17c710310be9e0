"""Which points lie in regions: polygons with holes, by the even-odd rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PAIRS_AT_ONCE = 2_000_000


def in_regions(
    xy: NDArray[np.float64], regions: Sequence[tuple[NDArray[np.float64], ...]]
) -> NDArray[np.bool_]:
    """Test points against polygons.

    Parameters
    ----------
    xy : ndarray of float64, shape (n, 2)
    regions : sequence of tuples of ndarray of float64, shape (v, 2)
        Rings of each polygon, closed or not. A point is in a polygon if a ray from it crosses its rings an
        odd number of times, which excludes holes and is defined for self-crossing outlines too.

    Returns
    -------
    ndarray of bool, shape (n,)
        Whether a point is in at least one polygon.

    Notes
    -----
    Points are sorted by y, so an edge meets only those within its own range: the time grows with the
    crossings, not with points times vertices.
    """
    order = np.argsort(xy[:, 1], kind="stable")
    x, y = xy[order, 0], xy[order, 1]
    inside = np.zeros(len(xy), np.bool_)
    for rings in regions:
        start = np.concatenate(rings)
        end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
        # Upwards, and half open below, so that a vertex at a point's height counts for one of its two edges.
        upward = start[:, 1] < end[:, 1]
        low, high = np.where(upward[:, None], start, end), np.where(upward[:, None], end, start)
        first, last = np.searchsorted(y, low[:, 1], "left"), np.searchsorted(y, high[:, 1], "left")
        crossings = np.zeros(len(xy), np.int64)
        edges = np.flatnonzero(last > first)
        counts = (last - first)[edges]
        ends = np.cumsum(counts)
        at = 0
        while at < len(edges):
            done = ends[at - 1] if at else 0
            stop = max(at + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, "right")))
            some = edges[at:stop]
            repeat = counts[at:stop]
            edge = np.repeat(some, repeat)
            offset = np.arange(int(repeat.sum())) - np.repeat(np.cumsum(repeat) - repeat, repeat)
            point = np.repeat(first[some], repeat) + offset
            share = (y[point] - low[edge, 1]) / (high[edge, 1] - low[edge, 1])
            right = x[point] < low[edge, 0] + share * (high[edge, 0] - low[edge, 0])
            crossings += np.bincount(point[right], minlength=len(xy))
            at = stop
        inside |= crossings % 2 == 1
    result = np.zeros(len(xy), np.bool_)
    result[order] = inside
    return result
