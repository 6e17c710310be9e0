"""Library only, not used by any command: exact retrieval from a bank split into shards.

A query takes two rounds. Each shard returns its k best rows with their scores; the best k of these are the
best k of the whole bank. Then each shard sums the weighted expression of its rows among them. The network
carries k rows per query and shard, then G sums.
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

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Candidates:
    """Candidate neighbors of N queries, best first, ties by row.

    Attributes
    ----------
    row : int64 [N, c]
        Rows of the whole bank.
    score, distance : float64 [N, c]
        See `reference.rank_scores` and `reference.distances`.
    """

    row: NDArray[np.int64]
    score: NDArray[np.float64]
    distance: NDArray[np.float64]


class Shard:
    """Rows `first` … `first` + m - 1 of a bank, prepared for queries.

    Parameters
    ----------
    bank : BankRows
        The m rows of this shard.
    first : int
        Index of its first row in the whole bank.
    spec : RetrievalSpec
        Settings for the whole bank; k may exceed m.
    provider : str
        See `Retriever`, also for errors.
    """

    def __init__(self, bank: BankRows, first: int, spec: RetrievalSpec, provider: str = "auto") -> None:
        self._embedding, self._expression = bank.embedding, bank.expression
        self._spec = spec
        local_spec = RetrievalSpec(min(spec.k, len(bank.embedding)), spec.rank, spec.distance)
        self._retriever = Retriever(bank, local_spec, provider)
        self.first = first
        self.genes = int(bank.expression.shape[1])

    def __len__(self) -> int:
        return len(self._embedding)

    def candidates(self, queries: NDArray[np.float32]) -> Candidates:
        """The best min(k, m) rows of this shard for queries [N, D]."""
        rows = self._retriever.aggregate(queries, neighbors=True).neighbors
        assert rows is not None
        score, distance = np.empty(rows.shape), np.empty(rows.shape)
        step = max(1, _BLOCK_BYTES // (24 * rows.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), step):
            block = slice(start, start + step)
            q, b = queries[block, None], self._embedding[rows[block]]
            score[block] = rank_scores(self._spec.rank, q, b)
            distance[block] = distances(self._spec.distance, q, b)
        return Candidates(rows + self.first, score, distance)

    def weighted_sum(self, row: NDArray[np.int64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Σ weight · expression over those of the bank's rows [N, k] that are in this shard."""
        local = row - self.first
        in_shard = (local >= 0) & (local < len(self))
        total = np.zeros((len(row), self.genes))
        for j in range(row.shape[1]):
            queries = np.flatnonzero(in_shard[:, j])
            total[queries] += weight[queries, j, None] * self._expression[local[queries, j]]
        return total


def merge(candidates: Sequence[Candidates], k: int) -> Candidates:
    """The best k of all shards' candidates for the same queries; ValueError if there are fewer than k."""
    row, score, distance = (
        np.concatenate([getattr(shard, name) for shard in candidates], axis=1)
        for name in ("row", "score", "distance")
    )
    if row.shape[1] < k:
        raise ValueError(f"k is {k} and the shards have {row.shape[1]} rows; give k from 1 to {row.shape[1]}")
    best = np.lexsort((row, score), axis=1)[:, :k]
    return Candidates(*(np.take_along_axis(values, best, axis=1) for values in (row, score, distance)))


def aggregate(
    queries: NDArray[np.float32], shards: Sequence[Shard], spec: RetrievalSpec, *, neighbors: bool = False
) -> RetrievalResult:
    """Retrieve from all shards as `Retriever.aggregate` does from the whole bank.

    Parameters
    ----------
    queries : float32 [N, D]
    shards : sequence of Shard
        Together the whole bank.
    spec : RetrievalSpec
        The spec the shards were made with.
    neighbors : bool
        Also return the selected rows.

    Returns
    -------
    RetrievalResult
        The same rows; expression within 1e-6·max|bank expression|, as float64 sums are added in shard order.

    Raises
    ------
    ValueError
        If the shards have fewer than spec.k rows.
    """
    best = merge([shard.candidates(queries) for shard in shards], spec.k)
    weight = weights(best.distance, spec)
    total = sum((shard.weighted_sum(best.row, weight) for shard in shards), np.zeros((1, shards[0].genes)))
    return RetrievalResult(
        np.broadcast_to(total, (len(queries), shards[0].genes)).astype(np.float32),
        best.distance.min(axis=1).astype(np.float32),
        (1 / np.square(weight).sum(axis=1)).astype(np.float32),
        best.row if neighbors else None,
    )
