"""Whether genes that go together in the measurement go together in the prediction (Figure S3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform


@dataclass(frozen=True)
class Coexpression:
    """Gene-gene correlation of one section.

    measured, predicted: float64 [G, G], Pearson r over the spots; NaN in row and column of a constant gene.
    agreement: Pearson r between the two over all pairs of different genes defined in both; NaN below three pairs.
    spread: root mean square of their differences over the same pairs.
    pairs: how many those are.
    """

    measured: NDArray[np.float64]
    predicted: NDArray[np.float64]
    agreement: float
    spread: float
    pairs: int


def correlate_genes(expression: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson r of every gene with every other over the spots: float64 [n, G] → float64 [G, G]."""
    constant = (expression == expression[:1]).all(axis=0)
    centred = expression - expression.mean(axis=0)
    largest = np.abs(centred).max(axis=0)
    centred = centred / np.where(largest > 0, largest, 1.0)
    length = np.sqrt(np.square(centred).sum(axis=0))
    unit = centred / np.where(length > 0, length, 1.0)
    r: NDArray[np.float64] = np.clip(unit.T @ unit, -1.0, 1.0)
    r[constant, :] = np.nan
    r[:, constant] = np.nan
    return r


def compare_coexpression(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> Coexpression:
    """Compare the correlations within a prediction with those within its truth, float64 [n, G] each."""
    of_measured, of_predicted = correlate_genes(measured), correlate_genes(predicted)
    above = np.triu_indices(len(of_measured), 1)
    a, b = of_measured[above], of_predicted[above]
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    varied = len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0
    agreement = float(np.corrcoef(a, b)[0, 1]) if varied else float("nan")
    spread = float(np.sqrt(np.square(a - b).mean())) if len(a) else float("nan")
    return Coexpression(of_measured, of_predicted, agreement, spread, len(a))


def mean_of(matrices: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean over sections, pair by pair, of the correlations that are defined; NaN where none is."""
    stack = np.stack(list(matrices))
    defined = np.count_nonzero(~np.isnan(stack), axis=0)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.nansum(stack, axis=0) / defined
    return mean


def order_genes(correlation: NDArray[np.float64]) -> NDArray[np.int64]:
    """An order of genes, int64 [G], that puts those that go together side by side.

    Average linkage on 1 - r with optimal leaf order; an undefined r counts as 0. Fewer than three genes stay.
    """
    if len(correlation) < 3:
        return np.arange(len(correlation), dtype=np.int64)
    distance = 1 - np.nan_to_num(correlation, nan=0.0)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(np.maximum(distance, 0.0), checks=False)
    return np.asarray(leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed)), np.int64)
