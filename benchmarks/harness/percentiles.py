"""Latency percentiles with distribution-free intervals; only those that the number of samples supports."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from scipy.stats import binom, norm

LEVELS = (50, 90, 95, 99)
_MIN_TAIL_SAMPLES = 10
"""A percentile is reported where at least this many samples are expected beyond it."""


def min_samples(level: float) -> int:
    """Fewest samples with which percentile `level` is reported."""
    return ceil(_MIN_TAIL_SAMPLES / (1 - level / 100) - 1e-9)


def mlperf_samples(level: float) -> int:
    """Queries that MLPerf Inference asks for at this percentile, rounded up to a multiple of 2¹³.

    Notes
    -----
    Its margin is a twentieth of the tail, at 99 % confidence: (Φ⁻¹(0.995))² · p(1 - p) / ((1 - p)/20)².
    """
    p = level / 100
    queries = norm.ppf(0.995) ** 2 * p * (1 - p) / ((1 - p) / 20) ** 2
    return 8192 * ceil(queries / 8192)


def percentile(samples: Sequence[float], level: float) -> tuple[float, float, float]:
    """Percentile (linear between order statistics) and its 95 % interval.

    Notes
    -----
    The interval's ends are the order statistics at the 2.5 % and 97.5 % quantiles of Binomial(n, level). It
    covers the true percentile in at least 95 % of samples, whatever the distribution. Where the sample is too
    small for an end, that end is its smallest or largest value.
    """
    x = np.sort(np.asarray(samples, dtype=np.float64))
    n, p = len(x), level / 100
    low, high = int(binom.ppf(0.025, n, p)), int(binom.ppf(0.975, n, p))
    return float(np.percentile(x, level)), float(x[max(0, low - 1)]), float(x[min(n - 1, high)])


def summarize_latency(samples: Sequence[float]) -> dict[str, Any]:
    """Summarize latencies in seconds; no sample is dropped.

    Returns
    -------
    dict
        n, mean, std, cv, min, max; `percentiles` that n supports, each with its interval and whether n meets
        MLPerf; `not_told`: the fewest samples that each missing percentile needs.
    """
    x = np.asarray(samples, dtype=np.float64)
    std = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    percentiles: dict[str, Any] = {}
    for level in LEVELS:
        if len(x) >= min_samples(level) or level == 50:
            value, low, high = percentile(samples, level)
            percentiles[f"p{level}"] = {
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
        "percentiles": percentiles,
        "not_told": {f"p{level}": min_samples(level) for level in LEVELS if f"p{level}" not in percentiles},
    }
