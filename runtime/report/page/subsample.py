"""Which spots of a map a page shows where there are more than a browser moves smoothly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_SPOTS = 100_000
"""Spots in a page."""


@dataclass(frozen=True)
class Shown:
    """places: the spots that are shown [m], rising. every: one of `every` x `every`, 1 where all are."""

    places: NDArray[np.intp]
    every: int


def subsample(xy_px: NDArray[np.float64], pitch_px: float, most: int = MOST_SPOTS) -> Shown:
    """At most `most` of the spots xy_px [n, 2]: of each square of `every` x `every` pitches the one nearest its centre.

    pitch_px: the distance between neighbours, level-0 px; `every` is the least that leaves few enough. Of several that
    are as near as each other, the first is taken; every spot that is taken is one of the map, with its own values.
    """
    n = len(xy_px)
    if n <= most:
        return Shown(np.arange(n), 1)
    corner = xy_px.min(axis=0) - pitch_px / 2
    every = max(2, math.ceil(math.sqrt(n / most)))
    while True:
        cells = (xy_px - corner) / (every * pitch_px)
        square = np.floor(cells)
        key = (square[:, 1] * (square[:, 0].max() + 1) + square[:, 0]).astype(np.int64)
        if len(np.unique(key)) <= most:
            # Rounded, so that four that lie around a centre are equally far from it whatever their last digit.
            far = np.round(((cells - square - 0.5) ** 2).sum(axis=1), 6)
            order = np.lexsort((np.arange(n), far, key))
            first = np.concatenate([[True], np.diff(key[order]) > 0])
            return Shown(np.sort(order[first]), every)
        every += 1
