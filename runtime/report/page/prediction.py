"""What the spots before it foretell of a spot, and the whole steps by which it differs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

BEFORE = 4
REACH = 9
"""Nearest spots, itself among them, of which those before it count."""


def spots_before(xy: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each spot [n, 2] up to four near ones that stand before it, nearest first: int64 [n, 4], -1 for none.

    On a grid row by row these are the one above, the one to the left, and the two beside the one above.
    """
    n = len(xy)
    found = np.atleast_2d(np.asarray(cKDTree(xy).query(xy, k=min(REACH, n))[1]).reshape(n, -1))
    far = np.round(((xy[found] - xy[:, None]) ** 2).sum(axis=2), 3)
    earlier = found < np.arange(n)[:, None]
    order = np.lexsort((found, far, ~earlier), axis=1)[:, :BEFORE]
    near = np.where(np.take_along_axis(earlier, order, 1), np.take_along_axis(found, order, 1), -1)
    return np.pad(near, ((0, 0), (0, BEFORE - near.shape[1])), constant_values=-1)


def fit_weights(
    values: NDArray[np.float64], before: NDArray[np.int64], noise: float = 0.0
) -> NDArray[np.float64]:
    """How much of each spot before it a spot takes over, float64 [4]: least squares over values [n, g].

    noise: variance of the error that the values before it will be known with.
    """
    sums = np.zeros((BEFORE, BEFORE))
    along = np.zeros(BEFORE)
    known = _known(values, before)
    for a in range(BEFORE):
        along[a] = np.vdot(known[a], values)
        sums[a, a] = noise * np.count_nonzero(before[:, a] >= 0) * values.shape[1]
        for b in range(BEFORE):
            sums[a, b] += np.vdot(known[a], known[b])
    weights = np.linalg.lstsq(sums, along, rcond=1e-9)[0]
    return np.asarray(np.round(weights, 6), np.float64)


def foretold(
    values: NDArray[np.float64], before: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What the spots before foretell of values [n, g], as float64 [n, g]; 0 where a spot has none."""
    total = np.zeros_like(values)
    for weight, known in zip(weights, _known(values, before), strict=True):
        total += weight * known
    return total


def whole_differences(
    values: NDArray[np.int64], before: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Whole values [n, g] less what is foretold of them, rounded half up: nothing is lost."""
    return values - np.floor(foretold(values.astype(np.float64), before, weights) + 0.5).astype(np.int64)


def steps(
    values: NDArray[np.float32],
    base: NDArray[np.float64],
    before: NDArray[np.int64],
    weights: NDArray[np.float64],
    most: float,
) -> NDArray[np.int64]:
    """Whole steps int64 [n, g] from what is foretold of values [n, g], 0 … `most`, to them, none off by more than ½.

    Of a spot is foretold, kept within 0 … `most`, its base plus the weighted differences of the spots before it from
    theirs, as the steps tell them: that is what a reader knows who adds the steps up one spot after the other.
    """
    n, g = values.shape
    told = np.zeros((n + 1, g))  # differences from the base; the last row is no spot's
    found = np.empty((n, g), np.int64)
    used = np.flatnonzero(weights)
    rows, share = before[:, used], weights[used]
    for spot in range(n):
        expected = base[spot] + share @ told[rows[spot]]
        np.clip(expected, 0, most, out=expected)
        found[spot] = np.rint(values[spot] - expected)
        np.add(expected, found[spot], out=expected)
        np.clip(expected, 0, most, out=expected)
        np.subtract(expected, base[spot], out=told[spot])
    return found


def _known(values: NDArray[np.float64], before: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    return [np.where((before[:, a] >= 0)[:, None], values[before[:, a]], 0.0) for a in range(BEFORE)]
