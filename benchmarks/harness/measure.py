"""Interleaved timing of contenders, so that drift and load on the machine affect all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness.machine import load_average

_RESAMPLES = 2000


class PeerUnavailable(Exception):
    """A peer that cannot run here; the message says why."""


@dataclass
class Samples:
    """Wall seconds and CPU seconds (all threads) of one contender, by round."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Rounds:
    """Samples by contender, and the load average before each round (None where there is none)."""

    samples: dict[str, Samples]
    load: list[float | None]


def time_interleaved(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    seed: int = 0,
    on_round: Callable[[], object] = lambda: None,
    wall_clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Rounds:
    """Run every contender once per round, in a new random order each round.

    Parameters
    ----------
    contenders : mapping of str to callable
        Each returns when its work is done; one that uses another device waits for it.
    rounds : int
        Rounds that count.
    warm_up : int
        Rounds before them that do not count.
    on_round : callable
        Called after each round, warm-up included.
    wall_clock, cpu_clock : callable
        Seconds of the wall clock, and CPU seconds of this process.
    """
    samples = {name: Samples() for name in contenders}
    load: list[float | None] = []
    rng = np.random.default_rng(seed)
    for number in range(-warm_up, rounds):
        before = load_average()
        for name in rng.permutation(list(contenders)).tolist():
            cpu, wall = cpu_clock(), wall_clock()
            contenders[name]()
            wall, cpu = wall_clock() - wall, cpu_clock() - cpu
            if number >= 0:
                samples[name].wall_s.append(wall)
                samples[name].cpu_s.append(cpu)
        if number >= 0:
            load.append(before)
        on_round()
    return Rounds(samples, load)


def summarize(values: list[float]) -> dict[str, float]:
    """n, min, median, mean, max, std (0 for one sample) and the median's 95 % bootstrap interval."""
    x = np.asarray(values, dtype=np.float64)
    low, high = median_interval(x)
    return {
        "n": len(x),
        "min": float(x.min()),
        "median": float(np.median(x)),
        "mean": float(x.mean()),
        "max": float(x.max()),
        "std": float(x.std(ddof=1)) if len(x) > 1 else 0.0,
        "median_low95": low,
        "median_high95": high,
    }


def summarize_runs(samples: Samples, first: Samples, tiles: int) -> dict[str, Any]:
    """Summarize runs over `tiles`: seconds, tiles per second, and ratios to the first contender's runs."""
    return {
        "wall_s": summarize(samples.wall_s),
        "cpu_s": summarize(samples.cpu_s),
        "tiles_per_s": summarize([tiles / s for s in samples.wall_s]),
        "wall_to_first": paired_ratio(samples.wall_s, first.wall_s),
        "cpu_to_first": paired_ratio(samples.cpu_s, first.cpu_s),
    }


def median_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the median of `values` [n]."""
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(values, size=(_RESAMPLES, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def paired_ratio(slower: list[float], faster: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return float(np.median(np.asarray(slower) / np.asarray(faster)))
