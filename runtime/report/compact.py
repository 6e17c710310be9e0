"""Genes of a large map in a few bytes: maps they share, what spots before foretell, and steps from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.report.digits import squeeze
from mclst.runtime.report.foretelling import fit_weights, foretold, spots_before, steps, whole_differences
from mclst.runtime.report.shared_maps import Mixture, find_mixture

RANKS = (0, 4, 8, 16, 32, 64, 128, 256)
SAMPLE_GENES, SAMPLE_SPOTS = 24, 6000
"""How a map is best told is tried on so many of its genes, evenly spaced, and its first so many spots."""
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

    def plans(self, ladder: tuple[int, ...]) -> Iterator[Plan]:
        """For each number of steps the number of shared maps that takes the fewest bytes, by trying on a part."""
        m, g = self.values.shape
        genes = np.linspace(0, g - 1, min(g, SAMPLE_GENES)).astype(np.intp)
        spots = slice(0, min(m, SAMPLE_SPOTS))
        before = self.before[spots]
        factors = self.mixture.factors[spots]
        sample = self.values[spots][:, genes].astype(np.float64) - self.mixture.mean[genes]
        for levels in ladder:
            best = None
            shared = 0.0
            done = 0
            for rank in RANKS:
                if rank > factors.shape[1]:
                    break
                for column in range(done, rank):
                    shared += _bits(factors[:, [column]], before, levels)
                done = max(done, rank)
                left = sample - factors[:, :rank] @ self.mixture.loadings[genes, :rank].T
                own = _bits(left, before, levels)
                size = m * (shared + own * g) / 8 + 2 * rank * g
                if best is None or size < best.bytes:
                    best = Plan(levels, rank, size)
            assert best is not None
            yield best

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
        chosen = np.linspace(0, g - 1, min(g, SAMPLE_GENES)).astype(np.intp)
        left = self.values[:, chosen] * float(plan.steps) - self._base(plan, whole, chosen)
        weights = fit_weights(left, self.before, noise=1 / 12)

        def told() -> Iterator[bytes]:
            at_once = max(8, AT_ONCE // len(self.values))
            for start in range(0, g, at_once):
                some = np.arange(start, min(g, start + at_once))
                values = self.values[:, some] * np.float32(plan.steps)
                found = steps(values, self._base(plan, whole, some), self.before, weights, plan.steps)
                for column in found.T:
                    yield squeeze(column)

        return weights, told()

    def _base(self, plan: Plan, whole: NDArray[np.int64], genes: NDArray[np.intp]) -> NDArray[np.float64]:
        mean = self.mixture.mean[genes].astype(np.float64) * plan.steps
        return mean + whole @ self.mixture.loadings[genes, : plan.maps].T


def _bits(values: NDArray[np.float64], before: NDArray[np.int64], levels: int) -> float:
    """Bits a value [n, g] takes in steps of 1 / levels, about: the entropy of what is not foretold."""
    rounded = values + np.random.default_rng(1).uniform(-0.5 / levels, 0.5 / levels, values.shape)
    weights = fit_weights(values, before, noise=1 / 12 / levels**2)
    left = np.rint((values - foretold(rounded, before, weights)) * levels).astype(np.int64)
    bits = 0.0
    for column in left.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        bits -= float(share @ np.log2(share))
    return bits / left.shape[1]
