"""Genes of a large map in a few bytes: maps they share, what spots before foretell, and steps from there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.report.page.entropy_coding import squeeze
from mclst.runtime.report.page.low_rank import MOST_MAPS, Mixture, find_mixture
from mclst.runtime.report.page.prediction import (
    fit_weights,
    foretold,
    spots_before,
    steps,
    whole_differences,
)

RANKS = (0, 4, 8, 16, MOST_MAPS)
SAMPLE_GENES, SAMPLE_SPOTS = 48, 10_000
"""How a map is best told is tried on so many of its genes, evenly spaced, and so many spots from its middle."""
SURPLUS = 0.04
"""Bits a value that zlib takes beside the entropy, about, as measured on maps of 30,000 spots."""
AT_ONCE = 8_000_000
"""Values that are told at a time."""


@dataclass(frozen=True)
class Plan:
    """How a map is told: steps of a gene's range, how many shared maps, and the bytes it will take, about."""

    steps: int
    maps: int
    bytes: float


class CompactMap:
    """Values of a map's genes, each scaled to 0 … 1, told in whole steps of 1 / `plan.steps`.

    values: float32 [m, g], 0 … 1, without NaN. xy: [m, 2], any unit.
    """

    def __init__(self, values: NDArray[np.float32], xy: NDArray[np.float64]) -> None:
        self.values = values
        self.before = spots_before(xy)
        self.mixture: Mixture = find_mixture(values)
        self.sample = np.linspace(0, values.shape[1] - 1, min(values.shape[1], SAMPLE_GENES)).astype(np.intp)

    def plan(self, levels: int) -> Plan:
        """How the map takes the fewest bytes in so many steps, by trying on a part of it."""
        m, g = self.values.shape
        count = min(m, SAMPLE_SPOTS)
        first = (m - count) // 2
        part = slice(first, first + count)
        before = np.maximum(self.before[part] - first, -1)
        factors = self.mixture.factors[part]
        own = self.values[part][:, self.sample].astype(np.float64) - self.mixture.mean[self.sample]
        shared = np.cumsum([0.0, *(_bits(column[:, None], before, levels) for column in factors.T)])
        best = Plan(levels, 0, math.inf)
        for rank in RANKS:
            if rank <= factors.shape[1]:
                left = own - factors[:, :rank] @ self.mixture.loadings[self.sample, :rank].T
                size = m * (shared[rank] + _bits(left, before, levels) * g) / 8 + 2 * rank * g
                best = min(best, Plan(levels, rank, float(size)), key=lambda plan: plan.bytes)
        whole = np.rint(factors[:, : best.maps] * levels).astype(np.int64)
        told = steps(
            self.values[part][:, self.sample] * np.float32(levels),
            self._base(best, whole, self.sample),
            before,
            self._weights(best, whole, part),
            levels,
        )
        size = m * (shared[best.maps] + (_entropy(told) + SURPLUS) * g) / 8 + 2 * best.maps * g
        return Plan(levels, best.maps, float(size))

    def shared(self, plan: Plan) -> tuple[NDArray[np.int64], NDArray[np.float64], list[bytes]]:
        """The shared maps in whole steps [m, r], the weights of the spots before in each [r, 4], and both as blocks."""
        whole = np.rint(self.mixture.factors[:, : plan.maps] * plan.steps).astype(np.int64)
        weights = np.zeros((plan.maps, self.before.shape[1]))
        blocks = []
        for place in range(plan.maps):
            column = whole[:, [place]]
            weights[place] = fit_weights(column.astype(np.float64), self.before)
            blocks.append(squeeze(whole_differences(column, self.before, weights[place])[:, 0]))
        return whole, weights, blocks

    def genes(self, plan: Plan, whole: NDArray[np.int64]) -> tuple[NDArray[np.float64], Iterator[bytes]]:
        """The weights [4] of the spots before in every gene, and gene by gene the block of its steps."""
        g = self.values.shape[1]
        weights = self._weights(plan, whole, slice(None))

        def told() -> Iterator[bytes]:
            at_once = max(8, AT_ONCE // len(self.values))
            for start in range(0, g, at_once):
                some = np.arange(start, min(g, start + at_once))
                values = self.values[:, some] * np.float32(plan.steps)
                found = steps(values, self._base(plan, whole, some), self.before, weights, plan.steps)
                for column in found.T:
                    yield squeeze(column)

        return weights, told()

    def _weights(self, plan: Plan, whole: NDArray[np.int64], part: slice) -> NDArray[np.float64]:
        """Weights of the spots before in what shared maps (whole steps [m, r], of the spots of `part`) leave of genes."""
        left = self.values[part][:, self.sample] * float(plan.steps) - self._base(plan, whole, self.sample)
        before = self.before[part] - (part.start or 0)
        return fit_weights(left, np.maximum(before, -1), noise=1 / 12)

    def _base(self, plan: Plan, whole: NDArray[np.int64], genes: NDArray[np.intp]) -> NDArray[np.float64]:
        mean = self.mixture.mean[genes].astype(np.float64) * plan.steps
        return mean + whole @ self.mixture.loadings[genes, : plan.maps].T


def _bits(values: NDArray[np.float64], before: NDArray[np.int64], levels: int) -> float:
    """Bits a value [n, g] takes in steps of 1 / levels, about: the entropy of what is not foretold."""
    rounded = values + np.random.default_rng(1).uniform(-0.5 / levels, 0.5 / levels, values.shape)
    weights = fit_weights(values, before, noise=1 / 12 / levels**2)
    left = np.rint((values - foretold(rounded, before, weights)) * levels).astype(np.int64)
    return _entropy(left)


def _entropy(numbers: NDArray[np.int64]) -> float:
    """Bits a number, each column [n] of numbers [n, g] by itself."""
    bits = 0.0
    for column in numbers.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        bits -= float(share @ np.log2(share))
    return float(bits / numbers.shape[1])
