"""The definition of retrieval, in float64; every provider is tested against it.

Distances are computed term by term: the expansion |q|² + |b|² - 2q·b cancels for near neighbors. Sums run
along the contiguous last axis, where numpy's pairwise order depends on D alone, so a pair's score does not
depend on its batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.contract import NoWeights
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import Distance, Rank, RetrievalSpec

# float64 unit vectors are accurate to about 2⁻⁴⁹, so directions closer than 2⁻⁴⁸ count as equal.
SAME_DIRECTION = 2.0**-48
# Cosines whose mean is not above this are no weights: their ratio to their sum would be noise.
LEAST_SIMILARITY = 1e-6
_BLOCK_BYTES = 32 << 20


def directions(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Normalize `vectors` [..., D] to unit length; zero vectors stay zero."""
    x = np.asarray(vectors, dtype=np.float64, order="C")
    norm = np.sqrt(np.multiply(x, x, order="C").sum(axis=-1, keepdims=True))
    return np.divide(x, np.where(norm > 0, norm, 1.0))


def rank_scores(rank: Rank, queries: NDArray[np.floating], rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rank scores, smallest first, for the broadcast pairs of two [..., D]: float64 [...].

    `l2`: Σ(q-b)². `l1`: Σ|q-b|. `cosine`: -sign(q·b)·(q·b)²/|b|², which decreases with the cosine and is 0
    for a zero vector. It rounds once after the sums, so equal cosines of integer vectors give equal scores.
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
    """Distances that weights are computed from, for the broadcast pairs of two [..., D]: float64 [...].

    `l2`: √Σ(q-b)². `l1`: Σ|q-b|. `cosine`: 1 - cos, computed as half the squared chord between unit vectors,
    which does not cancel; 0 for equal directions, 1 if either vector is zero.
    """
    if distance == "l2":
        return np.sqrt(rank_scores("l2", queries, rows))
    if distance == "l1":
        return rank_scores("l1", queries, rows)
    q, b = directions(queries), directions(rows)
    squared_chord = rank_scores("l2", q, b)
    half_squared_chord = np.where(squared_chord > SAME_DIRECTION**2, squared_chord / 2, 0.0)
    return np.where(q.any(axis=-1) & b.any(axis=-1), half_squared_chord, 1.0)


def weights(distance: NDArray[np.float64], spec: RetrievalSpec) -> NDArray[np.float64]:
    """Weights [..., k] of neighbors at `distance` [..., k], summing to 1 over the last axis.

    Raises NoWeights for the first of them whose similarities add up to nothing.
    """
    if spec.weighting == "similarity":
        similarity = 1 - distance
        total = similarity.sum(axis=-1, keepdims=True)
        weightless = np.flatnonzero(total <= LEAST_SIMILARITY * distance.shape[-1])
        if len(weightless):
            raise NoWeights(int(weightless[0]), float(total.ravel()[weightless[0]]))
        return np.asarray(similarity / total)
    # Relative to the nearest neighbor: the weights are the same and nothing overflows.
    nearest = distance.min(axis=-1, keepdims=True)
    if spec.weighting == "uniform":
        raw = np.ones_like(distance)
    elif spec.weighting == "inverse-square":
        ratio = nearest / np.where(distance > 0, distance, 1.0)
        raw = np.where(nearest > 0, ratio * ratio, distance == 0)
    else:
        excess = distance - nearest
        if spec.weighting == "softmax-squared":
            excess = excess * (distance + nearest)
        # Near temperature 0 the ratio overflows, and exp(-inf) = 0 is the intended weight.
        with np.errstate(over="ignore"):
            raw = np.exp(-excess / spec.temperature)
    return np.asarray(raw / raw.sum(axis=-1, keepdims=True))


def bank_scores(
    rank: Rank, query: NDArray[np.float32], embedding: NDArray[np.float32]
) -> NDArray[np.float64]:
    """`rank_scores` of a query [D] against all of `embedding` [M, D], in bounded memory: float64 [M]."""
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
    neighbors: bool = False,
) -> RetrievalResult:
    """Predict expression for `queries` [N, D] from a bank of `embedding` [M, D] and `expression` [M, G].

    For each query: the spec.k rows with the smallest `rank_scores`, ties to the lower row; their `distances`;
    their `weights`; and the weighted sum of their expression in float64, rounded once to float32.
    Inputs are not checked here; `Retriever` checks them.
    """
    result = RetrievalResult.empty(len(queries), expression.shape[1], spec.k if neighbors else None)
    for i, query in enumerate(queries):
        rows = np.argsort(bank_scores(spec.rank, query, embedding), kind="stable")[: spec.k]
        distance = distances(spec.distance, query, embedding[rows])
        try:
            weight = weights(distance, spec)
        except NoWeights as error:
            raise NoWeights(i, error.total) from None
        result.expression[i] = weight @ expression[rows].astype(np.float64)
        result.nearest[i], result.effective_k[i] = distance.min(), 1 / np.square(weight).sum()
        if result.neighbors is not None:
            result.neighbors[i] = rows
    return result
