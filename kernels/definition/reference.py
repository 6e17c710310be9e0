"""The definition of retrieval, in float64: every provider is measured against this file.

All arithmetic on embeddings is direct, term by term, without the |q|² + |b|² - 2q·b expansion, whose
cancellation loses near neighbours. Sums run along the contiguous last axis, where numpy adds pairwise in an
order that depends on D alone: a pair of rows has one score, wherever it stands and whatever stands beside it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import Distance, Rank, RetrievalSpec

# Unit vectors in float64 are right to about 2⁻⁴⁹, so directions nearer to each other than 2⁻⁴⁸ are one direction.
SAME_DIRECTION = 2.0**-48
_BLOCK_BYTES = 32 << 20


def directions(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Unit vectors [..., D] of `vectors` [..., D]; a zero vector stays zero."""
    x = np.asarray(vectors, dtype=np.float64, order="C")
    norm = np.sqrt(np.multiply(x, x, order="C").sum(axis=-1, keepdims=True))
    return np.divide(x, np.where(norm > 0, norm, 1.0))


def rank_scores(rank: Rank, queries: NDArray[np.floating], rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """The score that chooses neighbours, smallest first: float64 [...] for the broadcast pairs of two [..., D].

    `l2`: Σ(q-b)². `l1`: Σ|q-b|. `cosine`: -sign(q·b)·(q·b)²/|b|², which falls as the cosine rises and is 0 for a
    zero vector; it takes one rounding after the sums, so that equal cosines of whole-number vectors are equal here.
    """
    q = np.asarray(queries, dtype=np.float64, order="C")
    b = np.asarray(rows, dtype=np.float64, order="C")
    if rank == "cosine":
        dot = np.multiply(q, b, order="C").sum(axis=-1)
        squared_norm = np.multiply(b, b, order="C").sum(axis=-1)
        return np.asarray(-np.sign(dot) * (dot * dot / np.where(squared_norm > 0, squared_norm, 1.0)))
    difference = np.subtract(q, b, order="C")
    if rank == "l2":
        return np.asarray(np.multiply(difference, difference, out=difference).sum(axis=-1))
    return np.asarray(np.abs(difference, out=difference).sum(axis=-1))


def distances(
    distance: Distance, queries: NDArray[np.floating], rows: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The distance that weights are made of: float64 [...] for the broadcast pairs of two [..., D].

    `l2`: √Σ(q-b)². `l1`: Σ|q-b|. `cosine`: 1 - cos, taken as half the squared chord between unit vectors, which keeps
    its digits where 1 - cos would cancel; 0 for one direction, 1 wherever either vector is zero.
    """
    if distance == "l2":
        return np.sqrt(rank_scores("l2", queries, rows))
    if distance == "l1":
        return rank_scores("l1", queries, rows)
    q, b = directions(queries), directions(rows)
    squared_chord = rank_scores("l2", q, b)
    apart = np.where(squared_chord > SAME_DIRECTION**2, squared_chord / 2, 0.0)
    return np.where(q.any(axis=-1) & b.any(axis=-1), apart, 1.0)


def weights(distance: NDArray[np.float64], spec: RetrievalSpec) -> NDArray[np.float64]:
    """Weights [..., k] of neighbours at `distance` [..., k], summing to 1 over the last axis.

    Everything is taken relative to the nearest, which no weighting changes, so that nothing overflows.
    """
    nearest = distance.min(axis=-1, keepdims=True)
    if spec.weighting == "uniform":
        raw = np.ones_like(distance)
    elif spec.weighting == "inverse-square":
        ratio = nearest / np.where(distance > 0, distance, 1.0)
        raw = np.where(nearest > 0, ratio * ratio, distance == 0)
    else:
        beyond = distance - nearest
        if spec.weighting == "softmax-squared":
            beyond = beyond * (distance + nearest)
        # A temperature near 0 sends all but the nearest to exp(-inf) = 0, as it should.
        with np.errstate(over="ignore"):
            raw = np.exp(-beyond / spec.temperature)
    return np.asarray(raw / raw.sum(axis=-1, keepdims=True))


def bank_scores(
    rank: Rank, query: NDArray[np.float32], embedding: NDArray[np.float32]
) -> NDArray[np.float64]:
    """`rank_scores` of one query [D] against every row of `embedding` [M, D], in bounded memory: float64 [M]."""
    step = max(1, _BLOCK_BYTES // (8 * embedding.shape[1]))
    scores = np.empty(len(embedding))
    for start in range(0, len(embedding), step):
        scores[start : start + step] = rank_scores(rank, query, embedding[start : start + step])
    return scores


def aggregate(
    queries: NDArray[np.float32],
    embedding: NDArray[np.float32],
    expression: NDArray[np.float32],
    spec: RetrievalSpec,
    *,
    neighbours: bool = False,
) -> RetrievalResult:
    """Expression for `queries` [N, D] from a bank of `embedding` [M, D] and `expression` [M, G].

    For each query: the spec.k rows of smallest `rank_scores`, the lower row first among equal scores; their
    `distances`; their `weights`; the weighted sum of their expression in float64, rounded once to float32.
    Inputs are taken as checked (finite, of fitting shapes, k <= M); `Retriever` checks them.
    """
    n, genes = len(queries), expression.shape[1]
    result = np.empty((n, genes), dtype=np.float32)
    nearest, effective_k = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
    chosen = np.empty((n, spec.k), dtype=np.int64)
    for i, query in enumerate(queries):
        rows = np.argsort(bank_scores(spec.rank, query, embedding), kind="stable")[: spec.k]
        distance = distances(spec.distance, query, embedding[rows])
        weight = weights(distance, spec)
        result[i] = weight @ expression[rows].astype(np.float64)
        nearest[i], effective_k[i], chosen[i] = distance.min(), 1 / np.square(weight).sum(), rows
    return RetrievalResult(result, nearest, effective_k, chosen if neighbours else None)
