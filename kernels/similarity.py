"""Weighting by similarity over a whole bank, folded into two matrix products.

Each row of the bank weighs its cosine to the query, as in Loki's PredEx (Chen et al., Nature Methods 2025):
ŷ = Σ s_i·y_i / Σ s_i. With the rows' directions K [M, D] and a query q, s = K·q/|q|, and |q| cancels:

    ŷ = q·(Kᵀ·Y) / q·(Kᵀ·1)        Kᵀ·Y is [D, G], Kᵀ·1 is [D], whatever M
    effective k = (q·(Kᵀ·1))² / q·(Kᵀ·K)·q

All in float64. Only the distance to the nearest row needs a search.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.contract import BLOCK_BYTES, NoWeights, Provider
from mclst.kernels.definition.reference import LEAST_SIMILARITY, bank_scores, directions
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec

MakeProvider = Callable[[NDArray[np.float32], NDArray[np.float32], RetrievalSpec], Provider]


class SimilarityProvider:
    """A bank reduced to matrices of D rows; see `Provider`.

    Parameters
    ----------
    embedding : float32 [M, D]
    expression : float32 [M, G]
    spec : RetrievalSpec
        With weighting "similarity" and k = M.
    make : callable
        Makes the provider that searches the nearest row.
    """

    def __init__(
        self,
        embedding: NDArray[np.float32],
        expression: NDArray[np.float32],
        spec: RetrievalSpec,
        make: MakeProvider,
    ) -> None:
        rows, columns = embedding.shape
        self._embedding, self._rank = embedding, spec.rank
        self._sums = np.zeros((columns, expression.shape[1]))
        self._total, self._gram = np.zeros(columns), np.zeros((columns, columns))
        step = max(1, BLOCK_BYTES // (8 * (columns + expression.shape[1])))
        for start in range(0, rows, step):
            unit = directions(embedding[start : start + step])
            self._sums += unit.T @ expression[start : start + step].astype(np.float64)
            self._total += unit.sum(axis=0)
            self._gram += unit.T @ unit
        nothing = np.zeros((rows, 1), np.float32)
        self._nearest = make(embedding, nothing, RetrievalSpec(1, "cosine", "cosine", "uniform"))

    def aggregate(self, queries: NDArray[np.float32], *, neighbors: bool) -> RetrievalResult:
        """See `Provider`; raises NoWeights where a query's similarities add up to nothing."""
        unit = directions(queries)
        total = unit @ self._total
        weightless = np.flatnonzero(total <= LEAST_SIMILARITY * len(self._embedding))
        if len(weightless):
            row = int(weightless[0])
            raise NoWeights(row, float(total[row]))
        squares = np.einsum("nd,de,ne->n", unit, self._gram, unit, optimize=True)
        order = None
        if neighbors:
            order = np.array(
                [np.argsort(bank_scores(self._rank, q, self._embedding), kind="stable") for q in queries],
                np.int64,
            ).reshape(len(queries), len(self._embedding))
        return RetrievalResult(
            ((unit @ self._sums) / total[:, None]).astype(np.float32),
            self._nearest.aggregate(queries, neighbors=False).nearest,
            (np.square(total) / squares).astype(np.float32),
            order,
        )
