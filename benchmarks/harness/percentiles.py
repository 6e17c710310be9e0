"""Percentiles of latencies: only those that the samples can carry, with intervals that assume no distribution."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from scipy.stats import binom, norm

LEVELS = (50, 90, 95, 99)
_BEYOND = 10
"""A percentile is told where at least so many samples are expected beyond it."""


def samples_for(level: float) -> int:
    """The fewest samples with which the percentile `level` is told at all."""
    return ceil(_BEYOND / (1 - level / 100) - 1e-9)


def mlperf_samples(level: float) -> int:
    """Queries that MLPerf Inference asks for at this percentile, rounded up to a multiple of 2¹³.

    Its margin is a twentieth of the tail, at a confidence of 99 %: (Φ⁻¹(0.995))² · p(1 - p) / ((1 - p)/20)².
    """
    p = level / 100
    needed = norm.ppf(0.995) ** 2 * p * (1 - p) / ((1 - p) / 20) ** 2
    return 8192 * ceil(needed / 8192)


def percentile(samples: Sequence[float], level: float) -> tuple[float, float, float]:
    """The percentile (linear between order statistics) and its 95 % interval by order statistics.

    The interval holds the true percentile in at least 95 % of all samples, whatever the distribution: its ends are
    the order statistics at the 2.5 % and 97.5 % quantiles of Binomial(n, level). Where the sample is too small for an
    end, that end is its smallest or largest value.
    """
    x = np.sort(np.asarray(samples, dtype=np.float64))
    n, p = len(x), level / 100
    low, high = int(binom.ppf(0.025, n, p)), int(binom.ppf(0.975, n, p))
    return float(np.percentile(x, level)), float(x[max(0, low - 1)]), float(x[min(n - 1, high)])


def latency(samples: Sequence[float]) -> dict[str, Any]:
    """Describe latencies in seconds, none left out.

    n, mean, std, cv, min, max; under `percentiles` those of LEVELS that n carries, each with its 95 % interval and
    whether n is what MLPerf asks for; under `not_told` the fewest samples the others would need.
    """
    x = np.asarray(samples, dtype=np.float64)
    std = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    told: dict[str, Any] = {}
    for level in LEVELS:
        if len(x) >= samples_for(level) or level == 50:
            value, low, high = percentile(samples, level)
            told[f"p{level}"] = {
                "s": value,
                "low95": low,
                "high95": high,
                "mlperf": len(x) >= mlperf_samples(level),
            }
    return {
        "n": len(x),
        "mean": float(x.mean()),
        "std": std,
        "cv": std / float(x.mean()),
        "min": float(x.min()),
        "max": float(x.max()),
        "percentiles": told,
        "not_told": {f"p{level}": samples_for(level) for level in LEVELS if f"p{level}" not in told},
    }
