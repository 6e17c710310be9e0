"""Gene-gene correlations of prediction and measurement, compared (Figure S3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform


@dataclass(frozen=True)
class Coexpression:
    """Gene-gene correlations of one section.

    measured, predicted: float64 [G, G], Pearson r over the spots; NaN in row and column of a constant gene.
    agreement: Pearson r between the two over all pairs of different genes defined in both; NaN below three
    pairs.
    rms_difference: root mean square of their differences over the same pairs.
    pairs: number of those pairs.
    """

    measured: NDArray[np.float64]
    predicted: NDArray[np.float64]
    agreement: float
    rms_difference: float
    pairs: int


def correlate_genes(expression: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson r between all genes over the spots: float64 [n, G] → float64 [G, G]."""
    constant = (expression == expression[:1]).all(axis=0)
    centered = expression - expression.mean(axis=0)
    largest = np.abs(centered).max(axis=0)
    centered = centered / np.where(largest > 0, largest, 1.0)
    length = np.sqrt(np.square(centered).sum(axis=0))
    unit = centered / np.where(length > 0, length, 1.0)
    r: NDArray[np.float64] = np.clip(unit.T @ unit, -1.0, 1.0)
    r[constant, :] = np.nan
    r[:, constant] = np.nan
    return r


def compare_coexpression(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> Coexpression:
    """Compare gene-gene correlations of a prediction and its truth, float64 [n, G] each."""
    of_measured, of_predicted = correlate_genes(measured), correlate_genes(predicted)
    upper = np.triu_indices(len(of_measured), 1)
    a, b = of_measured[upper], of_predicted[upper]
    defined = np.isfinite(a) & np.isfinite(b)
    a, b = a[defined], b[defined]
    varied = len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0
    agreement = float(np.corrcoef(a, b)[0, 1]) if varied else float("nan")
    rms_difference = float(np.sqrt(np.square(a - b).mean())) if len(a) else float("nan")
    return Coexpression(of_measured, of_predicted, agreement, rms_difference, len(a))


def mean_of(matrices: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Element-wise mean over sections of the defined correlations; NaN if none is defined."""
    stack = np.stack(list(matrices))
    defined = np.count_nonzero(~np.isnan(stack), axis=0)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.nansum(stack, axis=0) / defined
    return mean


def order_genes(correlation: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order genes, int64 [G], so that correlated ones are adjacent.

    Average linkage on 1 - r with optimal leaf order; an undefined r counts as 0.
    """
    if len(correlation) < 3:
        return np.arange(len(correlation), dtype=np.int64)
    distance = 1 - np.nan_to_num(correlation, nan=0.0)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(np.maximum(distance, 0.0), checks=False)
    return np.asarray(leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed)), np.int64)
