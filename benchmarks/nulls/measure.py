"""Errors of the evaluation's p-values and intervals on random fields, where the truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.nulls.fields import gaussian_fields
from mclst.evaluation.baselines.comparison import Compared, compare
from mclst.evaluation.metrics.per_gene import measure_genes

ALPHA = 0.05
NOISE = 0.5
"""Of the two predictions: so much of a field of their own is added to the truth."""


def p_values(xy: NDArray[np.float64], length: float, noise: float, pairs: int, seed: int) -> dict[str, float]:
    """How often p < 0.05 for two independent fields.

    Parameters
    ----------
    xy : float64 [n, 2]
        Positions, in spots.
    length : float
        Of the exponential covariance, in spots; 0: white.
    noise : float
        Share of each field's variance that is white.
    pairs, seed : int

    Returns
    -------
    dict
        `published`: share of the pairs whose p, of independent spots, is below 0.05. `corrected`: of the p
        with the effective number of spots. `effective_spots`: their median.
    """
    one, other = (
        np.sqrt(1 - noise) * gaussian_fields(xy, length, pairs, seed=4 * seed + number)
        + np.sqrt(noise) * gaussian_fields(xy, 0, pairs, seed=4 * seed + 2 + number)
        for number in range(2)
    )
    table = measure_genes(one, other, xy)
    level = -np.log10(ALPHA)
    return {
        "published": float(np.mean(table["minus_log10_p"] > level)),
        "corrected": float(np.mean(table["minus_log10_p_spatial"] > level)),
        "effective_spots": float(table["effective_spots"].median()),
    }


def missed_intervals(
    xy: NDArray[np.float64], length: float, trials: int, genes: int, seed: int
) -> dict[str, Any]:
    """How often the 95 % interval of the difference of two equally good predictions of a section misses 0.

    Truth and predictions are Gaussian fields; each prediction is the truth and half of a field of its own.

    Parameters
    ----------
    xy : float64 [n, 2]
        Positions, in spots.
    length : float
        Of the exponential covariance of all fields, in spots.
    trials, genes, seed : int

    Returns
    -------
    dict
        `missed`: share of the trials. `least`, `most`: its 95 % interval (Wilson 1927).
    """
    missed = 0
    for trial in range(trials):
        first = 3 * (seed + trial)
        truth, a, b = (gaussian_fields(xy, length, genes, seed=first + part) for part in range(3))
        part = Compared(truth, truth + NOISE * a, truth + NOISE * b, xy, "")
        interval = compare([part], {"all": np.arange(genes)})["all"].r
        missed += not interval.low <= 0 <= interval.high
    least, most = _wilson(missed, trials)
    return {"missed": missed / trials, "least": least, "most": most}


def _wilson(count: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z = 1.959964
    middle = (count + z**2 / 2) / (trials + z**2)
    reach = z / (trials + z**2) * np.sqrt(count * (trials - count) / trials + z**2 / 4)
    return float(middle - reach), float(middle + reach)
