"""Positions and random fields whose autocorrelation is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist


def disc(radius: float) -> NDArray[np.float64]:
    """Points of a unit grid within a radius: float64 [n, 2]."""
    side = np.arange(-np.ceil(radius), np.ceil(radius) + 1)
    x, y = np.meshgrid(side, side)
    xy = np.column_stack([x.ravel(), y.ravel()])
    return np.asarray(xy[np.hypot(xy[:, 0], xy[:, 1]) <= radius])


def gaussian_fields(xy: NDArray[np.float64], length: float, count: int, *, seed: int) -> NDArray[np.float64]:
    """Independent Gaussian fields [n, count] of covariance exp(−distance / length); white for length 0."""
    noise = np.random.default_rng(seed).normal(size=(len(xy), count))
    if length == 0:
        return noise
    covariance = np.exp(-cdist(xy, xy) / length)
    return np.asarray(np.linalg.cholesky(covariance + 1e-9 * np.eye(len(xy))) @ noise)
