"""Accuracy measures of the mclSTExp scripts: Pearson r per gene, its means, MSE and MAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEG_GENES = 50


@dataclass(frozen=True)
class Score:
    """Accuracy of one predicted section.

    Attributes
    ----------
    pcc_acg : float
        Mean of `pcc_per_gene` over all genes where it is defined: "hvg pcc" in the scripts' output, ACG (all
        considered genes) in the paper.
    pcc_heg : float
        Mean over the 50 genes with the highest mean in the section's truth. As published, an undefined r is
        not dropped, so it makes this NaN.
    mse, mae : float
        Mean squared and mean absolute error over all spots and genes.
    pcc_per_gene : ndarray of float64, shape (G,)
        Pearson r over the spots; NaN where a gene is constant in the prediction or the truth.
    spots : int
        Number of scored spots.
    unpredicted : int
        Number of spots without a prediction (NaN rows), which are not scored.
    undefined : int
        Number of genes whose r is NaN.
    """

    pcc_acg: float
    pcc_heg: float
    mse: float
    mae: float
    pcc_per_gene: NDArray[np.float64]
    spots: int
    unpredicted: int
    undefined: int


def score(predicted: NDArray[Any], truth: NDArray[Any]) -> Score:
    """Score the prediction of one section, in float64.

    Parameters
    ----------
    predicted, truth : array, shape (n, G)
        The same spots and genes in the same order, in the same normalized units. A row of `predicted` that is
        all NaN (an unreadable tile) is not scored.

    Returns
    -------
    Score

    Raises
    ------
    ValueError
        If the shapes differ, fewer than two predicted spots remain, or any other value is not finite.

    Notes
    -----
    Follows the mclSTExp scripts' evaluation of a held-out section; the published figure is the mean over
    sections. Published figures use truth normalized gene-wise within the section. r, MSE and the choice of
    the 50 genes all depend on the normalization.
    """
    if predicted.shape != truth.shape or predicted.ndim != 2:
        raise ValueError(
            f"predicted is {predicted.shape} and truth {truth.shape}; give both as [spots, genes]"
        )
    has_prediction = ~np.isnan(predicted).all(axis=1)
    predicted, truth = (np.asarray(array[has_prediction], np.float64) for array in (predicted, truth))
    if len(predicted) < 2 or not predicted.shape[1]:
        raise ValueError(
            f"{len(predicted)} spots with a prediction and {predicted.shape[1]} genes; a score needs two and "
            "one"
        )
    for name, array in (("predicted", predicted), ("truth", truth)):
        if not np.isfinite(array).all():
            row, gene = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"{name} has {array[row, gene]} at spot row {np.flatnonzero(has_prediction)[row]}, gene "
                f"{gene}"
            )
    r = pearson_per_gene(predicted, truth)
    defined = ~np.isnan(r)
    highest = np.argsort(truth.mean(axis=0))[::-1][:HEG_GENES]
    difference = predicted - truth
    return Score(
        pcc_acg=float(r[defined].mean()) if defined.any() else float("nan"),
        pcc_heg=float(r[highest].mean()),
        mse=float(np.square(difference).mean()),
        mae=float(np.abs(difference).mean()),
        pcc_per_gene=r,
        spots=len(predicted),
        unpredicted=int(np.count_nonzero(~has_prediction)),
        undefined=int(np.count_nonzero(~defined)),
    )


def pearson_per_gene(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson r of each column of `a` and `b`, float64 [n, G] → [G]; NaN where either is constant."""
    constant = (a == a[:1]).all(axis=0) | (b == b[:1]).all(axis=0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    a, b = (_to_unit_length(centered) for centered in (a, b))
    r: NDArray[np.float64] = np.clip((a * b).sum(axis=0), -1.0, 1.0)
    r[constant] = np.nan
    return r


def _to_unit_length(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = np.abs(columns).max(axis=0)
    columns = columns / np.where(largest > 0, largest, 1.0)  # squares of tiny values would underflow
    length = np.sqrt(np.square(columns).sum(axis=0))
    unit: NDArray[np.float64] = columns / np.where(length > 0, length, 1.0)
    return unit
