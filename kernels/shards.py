"""A bank in shards, each where its memory is: what each finds is merged to what the whole bank would give, exactly.

A query takes two rounds. Each shard names its k best rows with their scores; the best k of all of them are the best k of
the bank, since none of these can be missing from its own shard's k. Then each shard sums the expression of its rows among
them, under the weights of all. What crosses the network is k numbers per query and shard, then G sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.contract import BankRows
from mclst.kernels.definition.reference import distances, rank_scores, weights
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever

AT_ONCE_BYTES = 64 << 20


@dataclass(frozen=True)
class Candidates:
    """Rows of the whole bank that may be a query's neighbours, best first, the lower row first among equal scores.

    row: int64 [N, c]. score, distance: float64 [N, c], see `reference.rank_scores` and `reference.distances`.
    """

    row: NDArray[np.int64]
    score: NDArray[np.float64]
    distance: NDArray[np.float64]


class Shard:
    """Rows `first` … `first` + m - 1 of a bank, made ready for queries."""

    def __init__(self, bank: BankRows, first: int, spec: RetrievalSpec, provider: str = "auto") -> None:
        """bank: its rows here. spec: of the whole bank, its k perhaps more than the rows here. Raises as `Retriever`."""
        self._embedding, self._expression = bank.embedding, bank.expression
        self._spec = spec
        here = RetrievalSpec(min(spec.k, len(bank.embedding)), spec.rank, spec.distance)
        self._retriever = Retriever(bank, here, provider)
        self.first = first
        self.genes = int(bank.expression.shape[1])

    def __len__(self) -> int:
        return len(self._embedding)

    def candidates(self, queries: NDArray[np.float32]) -> Candidates:
        """The best rows here for queries [N, D]: k of them, or all where the shard has fewer."""
        rows = self._retriever.aggregate(queries, neighbours=True).neighbours
        assert rows is not None, "asked for"
        score, distance = np.empty(rows.shape), np.empty(rows.shape)
        step = max(1, AT_ONCE_BYTES // (24 * rows.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            q, b = queries[some, None], self._embedding[rows[some]]
            score[some] = rank_scores(self._spec.rank, q, b)
            distance[some] = distances(self._spec.distance, q, b)
        return Candidates(rows + self.first, score, distance)

    def weighted_sum(self, row: NDArray[np.int64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Σ weight · expression over those of the whole bank's rows [N, k] that are here: float64 [N, G]."""
        here = (row >= self.first) & (row < self.first + len(self))
        local = np.where(here, row - self.first, 0)
        own = np.where(here, weight, 0.0)
        found = np.zeros((len(row), self.genes))
        for neighbour in range(row.shape[1]):
            some = np.flatnonzero(here[:, neighbour])
            found[some] += own[some, neighbour, None] * self._expression[local[some, neighbour]]
        return found


def merge(candidates: Sequence[Candidates], k: int) -> Candidates:
    """The best k of all shards' candidates for the same queries; ValueError where there are fewer."""
    row, score, distance = (
        np.concatenate([getattr(found, name) for found in candidates], axis=1)
        for name in ("row", "score", "distance")
    )
    if row.shape[1] < k:
        raise ValueError(f"k is {k} and the shards have {row.shape[1]} rows; give k from 1 to {row.shape[1]}")
    best = np.lexsort((row, score), axis=1)[:, :k]
    return Candidates(*(np.take_along_axis(values, best, axis=1) for values in (row, score, distance)))


def aggregate(
    queries: NDArray[np.float32], shards: Sequence[Shard], spec: RetrievalSpec, *, neighbours: bool = False
) -> RetrievalResult:
    """What `Retriever.aggregate` gives for the whole bank: the same rows, expression within 1e-6·max|bank expression|.

    The sums are float64 and rounded once; only their order is the shards' own. Raises ValueError as `merge` does.
    """
    best = merge([shard.candidates(queries) for shard in shards], spec.k)
    weight = weights(best.distance, spec)
    total = sum((shard.weighted_sum(best.row, weight) for shard in shards), np.zeros((1, shards[0].genes)))
    return RetrievalResult(
        np.broadcast_to(total, (len(queries), shards[0].genes)).astype(np.float32),
        best.distance.min(axis=1).astype(np.float32),
        (1 / np.square(weight).sum(axis=1)).astype(np.float32),
        best.row if neighbours else None,
    )
