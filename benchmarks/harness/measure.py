"""Timing contenders side by side: in turns, so that drift and other load on the machine meet them all alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000


@dataclass
class Samples:
    """What one contender took in each round: wall seconds, and CPU seconds of all its threads."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Rounds:
    """Samples by contender, round for round, and the load average before each round (None where there is none)."""

    samples: dict[str, Samples]
    load: list[float | None]


def in_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    seed: int = 0,
    done: Callable[[], object] = lambda: None,
) -> Rounds:
    """Run every contender once a round, in a new order each round; `warm_up` rounds before are not counted.

    A contender returns when its work is done: one that works on another device waits for it.
    `done` is called after each round, the `warm_up` ones too.
    """
    samples = {name: Samples() for name in contenders}
    load: list[float | None] = []
    rng = np.random.default_rng(seed)
    for turn in range(-warm_up, rounds):
        before = load_average()
        for name in rng.permutation(list(contenders)).tolist():
            cpu, wall = time.process_time(), time.perf_counter()
            contenders[name]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= 0:
                samples[name].wall_s.append(wall)
                samples[name].cpu_s.append(cpu)
        if turn >= 0:
            load.append(before)
        done()
    return Rounds(samples, load)


def spread(values: list[float]) -> dict[str, float]:
    """Of samples [n]: n, min, median, mean, max, std (0 for one), and a bootstrapped 95 % interval of the median."""
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


def median_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the median of `values` [n], by the bootstrap."""
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(values, size=(_RESAMPLES, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def ratio(slower: list[float], faster: list[float]) -> float:
    """How many times longer `slower` takes: the median over rounds of the ratio within the round."""
    return float(np.median(np.asarray(slower) / np.asarray(faster)))


def load_average() -> float | None:
    """Processes that ran or waited to run, over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
