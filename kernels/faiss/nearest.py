"""Exact k nearest bank rows by FAISS: float32 candidates, verified against a proven error bound.

FAISS returns candidates with float32 scores s. Let e bound |s - t|, where t is the true score. With s_k the
k-th smallest s, the k-th smallest t is within s_k ± e, hence

    s < s_k - 2e    the row is a neighbor,
    s > s_k + 2e    it is not, and neither is any row that FAISS did not return,
    otherwise       undecided: scored again in float64 by `rank_scores`, ties to the lower row.

If the last returned row is within s_k + 2e, that query is searched again with four times as many candidates,
up to all M. The selected set therefore never depends on float32 rounding; only the run time does.

`l2` and `cosine` search squared L2 between points X = σ(q - μ) and P = σ(b - μ), rounded to float32 (x, p): μ
the bank's mean and σ a power of two that scales the bank to size 1, so that a tight cluster far from the
origin keeps its precision. For `cosine`, q and b are unit vectors first (|u - v|² = 2 - 2cos), and a zero row
is a unit vector along an extra axis (squared distance 2 from all, cosine 0). `l1` searches Σ|x - p| of the
rows scaled by a power of two.

The bound, with u = 2⁻²⁴ and γ(n) = n·u / (1 - n·u), which covers a float32 inner product of n terms in any
order of summation, fused or not (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sec. 3.1):

    l1    differences round once and sum within γ(D+1): e = γ(D+8)·s_k.
    l2    rounding x and p moves the squared distance by at most (2u + u²)(|X| + |P|)²; FAISS's |x|² + |p|² -
          2x·p, or a direct sum of (x - p)², adds at most γ(D+2)(|x| + |p|)²: e = γ(D+8)(|x| + ρ)².
          ρ bounds |p| where it matters: the largest |p| of the bank, or 2(|x| + √s_k) if less. A row with |p|
          beyond the latter is more than |x| + 2√s_k away, a squared distance over s_k + 2e while γ(D+8) <
          1/40: it is not among the k, and its own s, with a relative error of at most 9γ, is not among the k
          smallest either.
    cosine as l2, plus the float64 error before the search: σ·2⁻⁴⁸ in x and in p, and 2⁻⁴⁶ in the 2 - 2cos of
          `rank_scores`.

Underflow adds at most D·2⁻¹²⁰(1 + |x| + ρ). Queries more than 2²⁰ times as far out as the bank is wide, and
zero queries under `cosine` (equal to all rows), are scored against every row in float64.
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
# FAISS searches for at most this many neighbors on a GPU; larger searches use the CPU.
MAX_GPU_NEIGHBORS = 2048


class Nearest:
    """Exact k nearest rows of a bank, on a GPU if FAISS supports it, else on the CPU.

    embedding: float32 [M, D], finite. rank: see `RetrievalSpec`. k: 1 … M.
    Keeps a float32 copy of the embedding, and another on the GPU. Raises ImportError without FAISS.
    """

    def __init__(self, embedding: NDArray[np.float32], rank: Rank, k: int) -> None:
        import faiss

        self._embedding, self._rank, self._k = embedding, rank, k
        self._zero_axis = rank == "cosine" and not embedding.any(axis=1).all()
        columns = embedding.shape[1] + self._zero_axis
        self._index: Any = faiss.IndexFlat(columns, faiss.METRIC_L1 if rank == "l1" else faiss.METRIC_L2)
        self._gamma = (columns + 8) * _ROUND / (1 - (columns + 8) * _ROUND)
        self._center, self._scale = self._frame(columns)
        self._widest = 0.0
        for block in _blocks(len(embedding), 16 * columns):
            points = self._points(embedding[block])
            self._index.add(points)
            self._widest = max(self._widest, float(_norms(points).max()))
        self._on_gpu = _copy_on_gpu(self._index)

    def rows(self, queries: NDArray[np.float32]) -> NDArray[np.int64]:
        """The k nearest bank rows of `queries` [N, D], ascending by row: int64 [N, k]."""
        if self._k == len(self._embedding):
            return np.broadcast_to(np.arange(self._k), (len(queries), self._k)).copy()
        rows = np.empty((len(queries), self._k), dtype=np.int64)
        points = self._points(queries)
        searchable = np.abs(points).max(axis=1) <= _FAR
        if self._rank == "cosine":
            searchable &= queries.any(axis=1)
        for i in np.flatnonzero(~searchable):
            scores = bank_scores(self._rank, queries[i], self._embedding)
            rows[i] = np.sort(np.argsort(scores, kind="stable")[: self._k])
        pending, fetch = np.flatnonzero(searchable), self._k + max(16, self._k // 16)
        while len(pending):
            fetch = min(fetch, len(self._embedding))
            unsettled = []
            for block in _blocks(len(pending), 32 * fetch):
                index = pending[block]
                settled, nearest = self._settle(queries[index], points[index], fetch)
                rows[index[settled]] = nearest
                unsettled.append(index[~settled])
            pending, fetch = np.concatenate(unsettled), 4 * fetch
        return rows

    def by_rank(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sort the output of `rows()` [N, k] by rank score and then by row: int64 [N, k]."""
        query = np.repeat(np.arange(len(queries)), self._k)
        scores = self._scores(queries, query, rows.ravel()).reshape(rows.shape)
        return np.asarray(np.take_along_axis(rows, np.argsort(scores, axis=1, kind="stable"), axis=1))

    def _frame(self, columns: int) -> tuple[NDArray[np.float64], float]:
        """μ [columns] and σ, from the bank."""
        center = np.zeros(columns)
        if self._rank != "l1":
            for block in _blocks(len(self._embedding), 16 * columns):
                center += self._uncentered(self._embedding[block]).sum(axis=0)
            center /= len(self._embedding)
        size = max(
            float(np.abs(self._uncentered(self._embedding[block]) - center).max())
            for block in _blocks(len(self._embedding), 16 * columns)
        )
        return center, float(np.ldexp(1.0, -int(np.frexp(size)[1])))

    def _uncentered(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        if self._rank != "cosine":
            return vectors.astype(np.float64)
        units = directions(vectors)
        if not self._zero_axis:
            return units
        return np.column_stack([units, ~vectors.any(axis=1)])

    def _points(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The points x of `vectors` [n, D], as searched: float32 [n, columns]."""
        points: NDArray[np.float64] = (self._uncentered(vectors) - self._center) * self._scale
        # A scaled query may overflow float32; infinity then counts as far.
        with np.errstate(over="ignore"):
            return points.astype(np.float32)

    def _error(self, points: NDArray[np.float32], kth: NDArray[np.float64]) -> NDArray[np.float64]:
        """The bound e of the module docstring, for queries at `points` [n, columns] with s_k `kth`."""
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
        """Search `fetch` candidates: which queries [n] are settled by them, and their rows [settled, k]."""
        index = self._index if self._on_gpu is None or fetch > MAX_GPU_NEIGHBORS else self._on_gpu
        with _by_matrix_product():
            scores, candidates = index.search(points, fetch)
        scores = scores.astype(np.float64)
        kth = scores[:, self._k - 1]
        band = (2 * self._error(points, kth))[:, None]
        low, high = kth[:, None] - band, kth[:, None] + band
        settled = (scores[:, -1:] > high)[:, 0] | (fetch == len(self._embedding))
        queries, candidates, scores = queries[settled], candidates[settled], scores[settled]
        low, high = low[settled], high[settled]
        selected = scores < low
        undecided = ~selected & (scores <= high)
        missing = self._k - selected.sum(axis=1)
        decided = undecided.sum(axis=1) == missing
        selected[decided] |= undecided[decided]
        undecided[decided] = False
        query, column = np.nonzero(undecided)
        if len(query):
            row = candidates[query, column]
            order = np.lexsort((row, self._scores(queries, query, row), query))
            # The pairs are sorted by query, then score: each query takes its first `missing` ones.
            first = np.searchsorted(query, np.arange(len(queries)))
            best = order[np.arange(len(query)) - first[query] < missing[query]]
            selected[query[best], column[best]] = True
        return settled, np.sort(candidates[selected].reshape(-1, self._k), axis=1)

    def _scores(
        self, queries: NDArray[np.float32], query: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Float64 rank scores of the pairs (queries[query], bank[rows]), both [p]."""
        scores = np.empty(len(query))
        for block in _blocks(len(query), 40 * queries.shape[1]):
            scores[block] = rank_scores(self._rank, queries[query[block]], self._embedding[rows[block]])
        return scores


def _copy_on_gpu(index: Any) -> Any | None:
    """The index on the first GPU; None if FAISS has no GPU support, no GPU, or no such metric there.

    FAISS disables reduced precision in cuBLAS, so the error bound also holds there.
    """
    import faiss

    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    if index.metric_type != faiss.METRIC_L2:
        return None
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


@contextmanager
def _by_matrix_product() -> Iterator[None]:
    """Make FAISS use matrix products for few queries too; its default loop is five times slower."""
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
