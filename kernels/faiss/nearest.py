"""The k nearest bank rows of each query: exactly the reference's, found by FAISS in float32.

FAISS proposes candidates with float32 scores s. A bound e on |s - t|, t being the true score, turns them into proof.
With s_k the k-th smallest s, the k-th smallest t lies within s_k ± e, hence

    s < s_k - 2e    the row is a neighbour,
    s > s_k + 2e    it is none, and as FAISS returns the smallest s, neither is any row it did not return,
    between         undecided: scored again in float64 by `rank_scores`, ties to the lower row.

If the last row returned still lies within s_k + 2e, that query alone asks for four times as many, up to all M.
So the set never rests on float32; only the time taken does.

`l2` and `cosine` search squared L2 between points X = σ(q - μ) and P = σ(b - μ), rounded to float32 (x, p): μ the bank's
mean and σ a power of two bringing the bank to size 1, so that a tight cluster far from the origin keeps its digits. For
`cosine`, q and b are unit vectors first (|u - v|² = 2 - 2cos) and a zero row is one unit along an axis of its own
(squared distance 2 from all, cosine 0). `l1` searches Σ|x - p| of the rows as they are, scaled by a power of two.

The bound, with u = 2⁻²⁴ and γ(n) = n·u / (1 - n·u), which covers a float32 inner product of n terms in any order of
summation, fused or not (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1):

    l1    differences round once and sum within γ(D+1): e = γ(D+8)·s_k.
    l2    rounding x and p moves the squared distance by at most (2u + u²)(|X| + |P|)²; FAISS's |x|² + |p|² - 2x·p, or
          a direct sum of (x - p)², adds at most γ(D+2)(|x| + |p|)²: e = γ(D+8)(|x| + ρ)².
          ρ bounds |p| where it matters: the largest |p| of the bank, or 2(|x| + √s_k) if less. A row with |p| beyond
          the latter is more than |x| + 2√s_k away, a squared distance over s_k + 2e while γ(D+8) < 1/40: it is none
          of the k, and its own s, wrong by at most 9γ of itself, is not among the k smallest either.
    cosine as l2, plus what float64 loses before the search: σ·2⁻⁴⁸ in the place of x and of p, and 2⁻⁴⁶ in 2 - 2cos
          as `rank_scores` knows it.

Underflow adds at most D·2⁻¹²⁰(1 + |x| + ρ). Queries more than 2²⁰ times as far out as the bank is wide, and zero queries
under `cosine`, to which all rows are equal, are scored against every row in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.reference import SAME_DIRECTION, bank_scores, directions, rank_scores
from mclst.kernels.definition.spec import Rank

_ROUND = 2.0**-24
_COSINE_SCORE_ERROR = 2.0**-46
_UNDERFLOW = 2.0**-120
_FAR = 2.0**20
_BLOCK_BYTES = 64 << 20
_FAISS_SETTING = Lock()
MOST_ON_GPU = 2048
"""Neighbours that FAISS finds at most on a GPU; a search for more goes to the CPU."""


class Nearest:
    """Exact k nearest rows of a bank, by FAISS: on a GPU where it can, else on the CPU.

    embedding: float32 [M, D], finite. rank: see `RetrievalSpec`. k: 1 … M.
    Holds one float32 copy of the embedding, and one on the GPU. Raises ImportError where FAISS is not installed.
    """

    def __init__(self, embedding: NDArray[np.float32], rank: Rank, k: int) -> None:
        import faiss

        self._embedding, self._rank, self._k = embedding, rank, k
        self._zero_axis = rank == "cosine" and not embedding.any(axis=1).all()
        columns = embedding.shape[1] + self._zero_axis
        self._index: Any = faiss.IndexFlat(columns, faiss.METRIC_L1 if rank == "l1" else faiss.METRIC_L2)
        self._gamma = (columns + 8) * _ROUND / (1 - (columns + 8) * _ROUND)
        self._centre, self._scale = self._frame(columns)
        self._widest = 0.0
        for block in _blocks(len(embedding), 16 * columns):
            points = self._place(embedding[block])
            self._index.add(points)
            self._widest = max(self._widest, float(_norms(points).max()))
        self._on_gpu = _copy_on_gpu(self._index)

    def rows(self, queries: NDArray[np.float32]) -> NDArray[np.int64]:
        """The k nearest bank rows of `queries` [N, D], ascending by row: int64 [N, k]."""
        if self._k == len(self._embedding):
            return np.broadcast_to(np.arange(self._k), (len(queries), self._k)).copy()
        rows = np.empty((len(queries), self._k), dtype=np.int64)
        points = self._place(queries)
        within = np.abs(points).max(axis=1) <= _FAR
        if self._rank == "cosine":
            within &= queries.any(axis=1)
        for i in np.flatnonzero(~within):
            scores = bank_scores(self._rank, queries[i], self._embedding)
            rows[i] = np.sort(np.argsort(scores, kind="stable")[: self._k])
        open_, fetch = np.flatnonzero(within), self._k + max(16, self._k // 16)
        while len(open_):
            fetch = min(fetch, len(self._embedding))
            left = []
            for block in _blocks(len(open_), 32 * fetch):
                some = open_[block]
                settled, found = self._settle(queries[some], points[some], fetch)
                rows[some[settled]] = found
                left.append(some[~settled])
            open_, fetch = np.concatenate(left), 4 * fetch
        return rows

    def by_rank(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """`rows` [N, k] as `rows()` gave them, ordered by rank score and then by row: int64 [N, k]."""
        of = np.repeat(np.arange(len(queries)), self._k)
        scores = self._scores(queries, of, rows.ravel()).reshape(rows.shape)
        return np.asarray(np.take_along_axis(rows, np.argsort(scores, axis=1, kind="stable"), axis=1))

    def _frame(self, columns: int) -> tuple[NDArray[np.float64], float]:
        """μ [columns] and σ, from the bank."""
        centre = np.zeros(columns)
        if self._rank != "l1":
            for block in _blocks(len(self._embedding), 16 * columns):
                centre += self._uncentred(self._embedding[block]).sum(axis=0)
            centre /= len(self._embedding)
        size = max(
            float(np.abs(self._uncentred(self._embedding[block]) - centre).max())
            for block in _blocks(len(self._embedding), 16 * columns)
        )
        return centre, float(np.ldexp(1.0, -int(np.frexp(size)[1])))

    def _uncentred(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        if self._rank != "cosine":
            return vectors.astype(np.float64)
        units = directions(vectors)
        if not self._zero_axis:
            return units
        return np.column_stack([units, ~vectors.any(axis=1)])

    def _place(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The float32 points searched for `vectors` [n, D]."""
        points: NDArray[np.float64] = (self._uncentred(vectors) - self._centre) * self._scale
        # A query may lie beyond float32 once scaled; it is infinite then, and so among the far ones.
        with np.errstate(over="ignore"):
            return points.astype(np.float32)

    def _error(self, points: NDArray[np.float32], kth: NDArray[np.float64]) -> NDArray[np.float64]:
        """e of the module's text, for queries at `points` [n, columns] with s_k `kth` [n]: float64 [n]."""
        columns = points.shape[1]
        error: NDArray[np.float64]
        if self._rank == "l1":
            error = self._gamma * kth + columns * _UNDERFLOW * (1 + kth)
            return error
        norm = _norms(points)
        size = norm + np.minimum(self._widest, 2 * (norm + np.sqrt(kth)))
        error = self._gamma * size**2 + columns * _UNDERFLOW * (1 + size)
        if self._rank == "cosine":
            moved = 2 * SAME_DIRECTION * self._scale
            error += 2 * moved * size + moved**2 + _COSINE_SCORE_ERROR * self._scale**2
        return error

    def _settle(
        self, queries: NDArray[np.float32], points: NDArray[np.float32], fetch: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which queries [n] `fetch` candidates suffice for, and the rows [settled, k] of those."""
        index = self._index if self._on_gpu is None or fetch > MOST_ON_GPU else self._on_gpu
        with _by_matrix_product():
            scores, candidates = index.search(points, fetch)
        scores = scores.astype(np.float64)
        kth = scores[:, self._k - 1]
        band = (2 * self._error(points, kth))[:, None]
        low, high = kth[:, None] - band, kth[:, None] + band
        settled = (scores[:, -1:] > high)[:, 0] | (fetch == len(self._embedding))
        queries, candidates, scores = queries[settled], candidates[settled], scores[settled]
        low, high = low[settled], high[settled]
        taken = scores < low
        undecided = ~taken & (scores <= high)
        wanted = self._k - taken.sum(axis=1)
        decided = undecided.sum(axis=1) == wanted
        taken[decided] |= undecided[decided]
        undecided[decided] = False
        of, column = np.nonzero(undecided)
        if len(of):
            row = candidates[of, column]
            order = np.lexsort((row, self._scores(queries, of, row), of))
            # Within its query's run of the sorted pairs, a pair is taken while fewer than `wanted` came before.
            first = np.searchsorted(of, np.arange(len(queries)))
            best = order[np.arange(len(of)) - first[of] < wanted[of]]
            taken[of[best], column[best]] = True
        return settled, np.sort(candidates[taken].reshape(-1, self._k), axis=1)

    def _scores(
        self, queries: NDArray[np.float32], of: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Float64 rank scores of the pairs (queries[of], bank[rows]), both [p]."""
        scores = np.empty(len(of))
        for block in _blocks(len(of), 40 * queries.shape[1]):
            scores[block] = rank_scores(self._rank, queries[of[block]], self._embedding[rows[block]])
        return scores


def _copy_on_gpu(index: Any) -> Any | None:
    """The index on the first GPU, or None where FAISS was built without, finds none, or has no such metric there.

    FAISS forbids cuBLAS the reduced precisions, so the bound above holds there as well.
    """
    import faiss

    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    if index.metric_type != faiss.METRIC_L2:
        return None
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


@contextmanager
def _by_matrix_product() -> Iterator[None]:
    """Have FAISS multiply matrices for few queries too: by default it sums differences, five times slower."""
    import faiss

    with _FAISS_SETTING:
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1
        try:
            yield
        finally:
            faiss.cvar.distance_compute_blas_threshold = before


def _norms(points: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.square(points, dtype=np.float64).sum(axis=1)))


def _blocks(count: int, bytes_each: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // bytes_each)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
