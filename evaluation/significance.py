"""Significance of each gene's Pearson r as −log10 p, and the ranking of Tables S3 and S4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import betainc, betaln, hyp2f1

SMALLEST_P = 1e-280
"""Below it, p approaches the limit of float64, and its logarithm is computed directly."""
MIN_UNEXPLAINED = 2.0**-52
"""Lower bound of 1 - r², one float64 step, so that a perfect correlation has a finite −log10 p."""


def minus_log10_p(r: NDArray[np.float64], spots: int) -> NDArray[np.float64]:
    """−log10 of the two-sided p-value of Pearson's r over `spots` spots: float64 [G], NaN where r is.

    p = I(1 - r²; (n - 2) / 2, 1/2), the regularized incomplete beta function, as in scipy.stats.pearsonr; p
    is 1 for n = 2. If p is too small for float64, its logarithm comes from I(x; a, b) = xᵃ (1 - x)ᵇ ₂F₁(a +
    b, 1; a + 1; x) / (a B(a, b)) (DLMF 8.17.8).
    """
    r = np.asarray(r, np.float64)
    if spots <= 2:
        return np.where(np.isnan(r), np.nan, 0.0)
    a, b = (spots - 2) / 2, 0.5
    x = np.clip((1 - np.abs(r)) * (1 + np.abs(r)), MIN_UNEXPLAINED, 1.0)
    p = betainc(a, b, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        direct = -np.log10(p)
        logarithm = a * np.log(x) + b * np.log1p(-x) - np.log(a) - betaln(a, b)
        series = -(logarithm + np.log(hyp2f1(a + b, 1.0, a + 1, x))) / np.log(10)
    result: NDArray[np.float64] = np.where(p > SMALLEST_P, direct, series)
    return np.where(np.isnan(r), np.nan, np.maximum(result, 0.0))


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
