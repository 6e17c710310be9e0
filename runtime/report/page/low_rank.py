"""Maps that many genes are mixtures of: what most of a large map's page is told by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_MAPS = 32
"""More would take about as many bytes as they save, and a reader longer to add up."""
FIT_VALUES = 8_000_000
"""The maps are found on so many values at the most: evenly spaced spots, all genes."""
LOADING = 32767
"""A gene's part in a map, -1 … 1, is told in so many steps either way."""


@dataclass(frozen=True)
class Mixture:
    """Genes as a mean and mixtures of maps: value = mean + Σ factors · loadings.

    mean: float32 [g]. factors: float64 [m, r], of falling variance. loadings: float64 [g, r], each map's of length 1.
    """

    mean: NDArray[np.float32]
    factors: NDArray[np.float64]
    loadings: NDArray[np.float64]


def find_mixture(values: NDArray[np.float32]) -> Mixture:
    """The first principal components of values [m, g]: no more than an eighth of its spots and a half of its genes.

    By random projection (Halko, Martinsson & Tropp 2011), always the same; loadings are rounded to 1 / LOADING.
    """
    m, g = values.shape
    part = values[:: max(1, -(-values.size // FIT_VALUES))]
    mean = part.mean(axis=0, dtype=np.float64).astype(np.float32)
    rank = min(MOST_MAPS, len(part) // 8, g // 2)
    if rank == 0:
        return Mixture(mean, np.zeros((m, 0)), np.zeros((g, 0)))
    centred = part - mean
    start = np.random.default_rng(0).normal(size=(g, min(rank + 8, g, len(part)))).astype(np.float32)
    for _ in range(2):
        start = np.linalg.qr(centred.T @ (centred @ start))[0]
    axes = start @ np.linalg.svd(centred @ start, full_matrices=False)[2].T[:, :rank]
    loadings = np.rint(axes.astype(np.float64) * LOADING) / LOADING
    factors = (values @ loadings.astype(np.float32)).astype(np.float64) - mean.astype(np.float64) @ loadings
    return Mixture(mean, factors, loadings)
