"""Significance of each gene's Pearson r as −log10 p, and the ranking of Tables S3 and S4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import betainc, betaln, hyp2f1
from scipy.stats import false_discovery_control

SMALLEST_P = 1e-280
"""Below it, p approaches the limit of float64, and its logarithm is computed directly."""
MIN_UNEXPLAINED = 2.0**-52
"""Lower bound of 1 - r², one float64 step, so that a perfect correlation has a finite −log10 p."""


def minus_log10_p(r: NDArray[np.float64], spots: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """−log10 of the two-sided p-value of Pearson's r over `spots` spots: float64 [G], NaN where r is.

    p = I(1 - r²; (n - 2) / 2, 1/2), the regularized incomplete beta function, as in scipy.stats.pearsonr; p
    is 1 for n ≤ 2. If p is too small for float64, its logarithm comes from I(x; a, b) = xᵃ (1 - x)ᵇ ₂F₁(a +
    b, 1; a + 1; x) / (a B(a, b)) (DLMF 8.17.8). n may differ from gene to gene and need not be whole: the
    number of independent spots that `effective_spots` estimates.
    """
    r, n = np.broadcast_arrays(np.asarray(r, np.float64), np.asarray(spots, np.float64))
    few = n <= 2
    a, b = np.where(few, 1.0, n - 2) / 2, 0.5
    x = np.clip((1 - np.abs(r)) * (1 + np.abs(r)), MIN_UNEXPLAINED, 1.0)
    p = betainc(a, b, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        direct = -np.log10(p)
        logarithm = a * np.log(x) + b * np.log1p(-x) - np.log(a) - betaln(a, b)
        series = -(logarithm + np.log(hyp2f1(a + b, 1.0, a + 1, x))) / np.log(10)
    result: NDArray[np.float64] = np.where(p > SMALLEST_P, direct, series)
    return np.where(np.isnan(r), np.nan, np.where(few, 0.0, np.maximum(result, 0.0)))


def false_discovery_rate(minus_log10: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjusted p-values of G genes by Benjamini & Hochberg 1995: float64 [G]; NaN where the p-value is."""
    q = np.full(minus_log10.shape, np.nan)
    defined = ~np.isnan(minus_log10)
    if defined.any():
        q[defined] = false_discovery_control(10.0 ** -minus_log10[defined])
    return q


def combine_p(minus_log10: NDArray[np.float64]) -> NDArray[np.float64]:
    """One −log10 p per gene out of those of S sections: float64 [S, G] → [G]; undefined ones are left out.

    The Cauchy combination (Liu & Xie 2020), which holds where the sections depend on each other, as those of
    one patient do: the mean of tan((1/2 − p) π) is Cauchy-distributed in its tail.
    """
    p = 10.0 ** -np.asarray(minus_log10, np.float64)
    defined = np.count_nonzero(~np.isnan(p), axis=0)
    # Below 1e-15, tan((1/2 − p) π) is 1 / (p π) to the last digit, and 1/2 − p would lose p.
    tiny = p < 1e-15
    statistic = np.where(
        tiny, 1 / (np.maximum(p, 1e-300) * np.pi), np.tan((0.5 - np.minimum(p, 1 - 1e-15)) * np.pi)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(statistic, axis=0) / defined
        combined = np.where(mean > 1e15, 1 / (mean * np.pi), 0.5 - np.arctan(mean) / np.pi)
        result: NDArray[np.float64] = np.where(defined > 0, np.maximum(-np.log10(combined), 0.0), np.nan)
    return result


def rank_genes(genes: Sequence[str], r: Sequence[NDArray[np.float64]], spots: Sequence[int]) -> pd.DataFrame:
    """Rank genes by mean −log10 p over the sections, highest first; ties keep the order of `genes`.

    As published, the sign of r is ignored in the ranking. Genes without an r come last.

    Parameters
    ----------
    genes : sequence of str, length G
    r : sequence of ndarray of float64, shape (G,)
        Pearson r per gene of each section.
    spots : sequence of int
        Number of spots of each section.

    Returns
    -------
    DataFrame
        Columns rank (from 1), gene, minus_log10_p and pcc (means over the sections where the gene has an r),
        and sections (number of those sections).
    """
    logs: NDArray[Any] = np.stack([minus_log10_p(values, n) for values, n in zip(r, spots, strict=True)])
    defined = np.count_nonzero(~np.isnan(logs), axis=0)
    with np.errstate(invalid="ignore"):
        mean, pcc = (np.nansum(values, axis=0) / defined for values in (logs, np.stack(list(r))))
    order = np.argsort(-np.where(defined > 0, mean, -np.inf), kind="stable")
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(order) + 1),
            "gene": np.asarray(genes, dtype=object)[order],
            "minus_log10_p": mean[order],
            "pcc": pcc[order],
            "sections": defined[order],
        }
    )
