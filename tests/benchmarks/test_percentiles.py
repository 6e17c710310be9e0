"""Percentiles of known distributions: values, coverage of intervals, and number of samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mclst.benchmarks.harness.percentiles import (
    LEVELS,
    min_samples,
    mlperf_samples,
    percentile,
    summarize_latency,
)

DRAWN_FROM = {
    "exponential": stats.expon(scale=3e-3),
    "log-normal": stats.lognorm(0.5, scale=2e-3),
    "two modes": None,
}


def draw(name: str, rng: np.random.Generator, n: int) -> np.ndarray:
    if name == "two modes":  # most queries quick, one in twenty slow
        return np.where(rng.random(n) < 0.95, rng.uniform(1e-3, 2e-3, n), rng.uniform(9e-3, 1e-2, n))
    return DRAWN_FROM[name].rvs(n, random_state=rng)  # type: ignore[union-attr]


def true_percentile(name: str, level: float) -> float:
    p = level / 100
    if name == "two modes":
        return 1e-3 + p / 0.95 * 1e-3 if p < 0.95 else 9e-3 + (p - 0.95) / 0.05 * 1e-3
    return float(DRAWN_FROM[name].ppf(p))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", DRAWN_FROM)
@pytest.mark.parametrize("level", [50, 90, 99])
def test_known_distributions_give_known_percentiles(name: str, level: int) -> None:
    value, low, high = percentile(draw(name, np.random.default_rng(1), 200_000).tolist(), level)
    assert value == pytest.approx(true_percentile(name, level), rel=0.02)
    assert low <= value <= high


@pytest.mark.parametrize("name", DRAWN_FROM)
@pytest.mark.parametrize("level", [50, 90, 95])
def test_the_interval_holds_the_true_percentile_as_often_as_it_says(name: str, level: int) -> None:
    rng, trials = np.random.default_rng(7), 1500
    covered = 0
    for _ in range(trials):
        _, low, high = percentile(draw(name, rng, 300).tolist(), level)
        covered += low <= true_percentile(name, level) <= high
    # At least 95 %, less three standard deviations of 1,500 trials.
    assert covered / trials > 0.95 - 3 * np.sqrt(0.95 * 0.05 / trials)


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=60), st.sampled_from(LEVELS))
def test_the_value_is_numpys_and_within_the_samples(samples: list[float], level: int) -> None:
    value, low, high = percentile(samples, level)
    assert value == pytest.approx(np.percentile(samples, level))
    assert min(samples) <= low <= high <= max(samples)


def test_percentiles_need_enough_samples() -> None:
    levels = ["p50", "p90", "p95", "p99"]
    for n, count in ((5, 1), (100, 2), (200, 3), (1000, 4)):
        expected = set(levels[:count])
        summary = summarize_latency(np.linspace(1, 2, n).tolist())
        assert set(summary["percentiles"]) == expected
        assert set(summary["not_told"]) == set(levels) - expected
        if n > 5:
            assert set(summarize_latency(np.linspace(1, 2, n - 1).tolist())["percentiles"]) < expected
    assert min_samples(99) == 1000


def test_mlperfs_own_table_of_queries() -> None:
    """The numbers of MLPerf's rules."""
    assert [mlperf_samples(level) for level in (90, 95, 97, 99)] == [24_576, 57_344, 90_112, 270_336]
    assert summarize_latency([1.0] * 200)["percentiles"]["p90"]["mlperf"] is False


def test_no_sample_is_dropped() -> None:
    summary = summarize_latency([1.0] * 999 + [500.0])
    assert summary["max"] == 500 and summary["n"] == 1000
    assert summary["mean"] == pytest.approx(1.499) and summary["std"] == pytest.approx(
        np.std([1.0] * 999 + [500.0], ddof=1)
    )
    assert summary["percentiles"]["p99"]["high95"] == 500 or summary["percentiles"]["p99"]["high95"] == 1
