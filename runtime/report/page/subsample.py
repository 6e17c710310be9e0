"""Select the spots that a page shows when there are too many for a browser."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_SPOTS = 100_000


@dataclass(frozen=True)
class SpotSample:
    """Selected spots.

    indices: int [m], ascending. stride: each spot represents stride x stride pitches; 1: all spots.
    """

    indices: NDArray[np.intp]
    stride: int


def subsample(xy_px: NDArray[np.float64], pitch_px: float, max_spots: int = MAX_SPOTS) -> SpotSample:
    """Select the spot nearest the center of each square of `stride` x `stride` pitches.

    Parameters
    ----------
    xy_px : float64 array [n, 2]
        Spot centers, level-0 px.
    pitch_px : float
        Distance between neighbors, level-0 px.
    max_spots : int
        The smallest stride that leaves at most this many spots is used.

    Returns
    -------
    SpotSample
        Of equally near spots the first is selected.
    """
    n = len(xy_px)
    if n <= max_spots:
        return SpotSample(np.arange(n), 1)
    corner = xy_px.min(axis=0) - pitch_px / 2
    stride = max(2, math.ceil(math.sqrt(n / max_spots)))
    while True:
        scaled = (xy_px - corner) / (stride * pitch_px)
        cell = np.floor(scaled)
        key = (cell[:, 1] * (cell[:, 0].max() + 1) + cell[:, 0]).astype(np.int64)
        if len(np.unique(key)) <= max_spots:
            # Rounded so that four spots around a center tie exactly.
            distance = np.round(((scaled - cell - 0.5) ** 2).sum(axis=1), 6)
            order = np.lexsort((np.arange(n), distance, key))
            first = np.concatenate([[True], np.diff(key[order]) > 0])
            return SpotSample(np.sort(order[first]), stride)
        stride += 1
