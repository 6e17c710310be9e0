"""Agreement of predicted and measured values per gene: rank correlation, concordance, R², variance kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mclst.sections.accuracy import pearson_per_gene

Values = NDArray[np.float64]


def spearman_per_gene(predicted: Values, truth: Values) -> Values:
    """Spearman's ρ of each gene: Pearson r of the ranks, ties at their mean rank.

    Parameters
    ----------
    predicted, truth : float64 [n, G]

    Returns
    -------
    float64 [G]
        NaN where either is constant.
    """
    return pearson_per_gene(
        *(np.asarray(rankdata(values, axis=0), np.float64) for values in (predicted, truth))
    )


def concordance_per_gene(predicted: Values, truth: Values) -> Values:
    """Concordance correlation coefficient of each gene (Lin 1989).

    2 cov / (var predicted + var truth + (difference of the means)²), with population moments. Unlike r, it
    falls with a wrong level or a wrong spread.

    Parameters
    ----------
    predicted, truth : float64 [n, G]

    Returns
    -------
    float64 [G]
        NaN where the truth is constant; 0 where only the prediction is.
    """
    shift = predicted.mean(axis=0) - truth.mean(axis=0)
    a, b = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    below = np.square(a).mean(axis=0) + np.square(b).mean(axis=0) + np.square(shift)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(_is_constant(truth), np.nan, 2 * (a * b).mean(axis=0) / below)


def r_squared_per_gene(predicted: Values, truth: Values) -> Values:
    """Coefficient of determination of each gene: 1 − squared errors / squared deviations of the truth.

    0 is the section's own mean; a map in other units, or with errors larger than that, is negative.

    Parameters
    ----------
    predicted, truth : float64 [n, G]

    Returns
    -------
    float64 [G]
        NaN where the truth is constant.
    """
    errors = np.square(predicted - truth).sum(axis=0)
    total = np.square(truth - truth.mean(axis=0)).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(_is_constant(truth), np.nan, 1 - errors / total)


def relative_variance_per_gene(predicted: Values, truth: Values) -> Values:
    """Variance of the prediction over the truth's: 1 keeps it, 0 is flat, above 1 exaggerates.

    Parameters
    ----------
    predicted, truth : float64 [n, G]

    Returns
    -------
    float64 [G]
        NaN where the truth is constant.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(_is_constant(truth), np.nan, predicted.var(axis=0) / truth.var(axis=0))


def mse_per_gene(predicted: Values, truth: Values) -> Values:
    """Mean squared error of each gene: float64 [n, G] twice → [G]."""
    return np.asarray(np.square(predicted - truth).mean(axis=0))


def partial_correlation_per_gene(predicted: Values, truth: Values, given: Values) -> Values:
    """Pearson r of each gene after both sides are regressed on covariates.

    Parameters
    ----------
    predicted, truth : float64 [n, G]
    given : float64 [n, C]
        Covariates, such as hematoxylin and nuclei density of the tile; an intercept is added.

    Returns
    -------
    float64 [G]
        NaN where nothing but rounding is left of a side, or with fewer than C + 3 spots.

    Raises
    ------
    ValueError
        If a covariate is not finite.
    """
    if not np.isfinite(given).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(given))} covariates are not finite; leave their spots out"
        )
    n = len(truth)
    if n < given.shape[1] + 3:
        return np.full(truth.shape[1], np.nan)
    spread = given.std(axis=0)
    columns = (given - given.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    u, s, _ = np.linalg.svd(np.column_stack([np.ones(n), columns]), full_matrices=False)
    basis = u[:, s > s[0] * 1e-10]
    left = []
    explained = np.zeros(truth.shape[1], np.bool_)
    for values in (predicted, truth):
        residual = values - basis @ (basis.T @ values)
        scale = np.abs(values).max(axis=0)
        explained |= np.abs(residual).max(axis=0) <= 1e-10 * np.where(scale > 0, scale, 1.0)
        left.append(residual)
    return np.where(explained, np.nan, pearson_per_gene(*left))


def _is_constant(values: Values) -> NDArray[np.bool_]:
    return np.asarray((values == values[:1]).all(axis=0))
