"""The cpu provider: exact retrieval by compiled loops, with the queries divided among threads.

retrieve.cpp lists the steps. This module holds the bank, divides the work, resolves ties, and proves below
that the selected set is the reference's.

Bank rows and queries become points as in `nearest`: centered, scaled by a power of two, rounded to float32
(x, p; |x - X| and |p - P| within 2⁻²⁴ of |X| and |P|); unit vectors for cosine. Each point is then quantized
to int16 with its own scale: x̂ = x - δx, p̂ = p - δp, where |δx| and |δp| are measured. x̂·p̂ is exact up to
its scales: integer vectors shorter than 46340 have products, and partial sums of products, within int32
(Cauchy-Schwarz). AMX multiplies their bytes separately and adds modulo 2³², with the same result. So

    s = |p|² - 2 x̂·p̂   against   t - |x|² = |P|² - 2 X·P + …
    |x·p - x̂·p̂| <= (|x| + |δx|)|δp| + |δx||p| <= ((|x| + |δx|)·h + |δx|)·ρ

with h the largest |δp|/|p| of the bank; and with at most 16·2⁻²⁴ (|x| + ρ)² for the points, for |p|² and for
the four roundings of s, plus the terms for `cosine` and for underflow of `nearest`:

    e = 2ρ·((|x| + |δx|)·h + |δx|) + 16·2⁻²⁴ (|x| + ρ)² + …

ρ bounds |p| where it matters: the largest |p| of the bank, or 2(|x| + √s_k) if less. A row further out is
more than |x| + 2√s_k away; while h + |δx|/|x| < 1/25, neither its t nor its s is among the k smallest. Then,
as in `nearest`,

    s < s_k - 2e: a neighbor.   s > s_k + 2e: not a neighbor.   Otherwise: undecided.

`l1` sums |x - p| in float32, e = γ(D+8)·s_k. Undecided rows are scored in float64. That sum and the
reference's differ only in order, by at most g = 2γ'·t (l1, l2; γ' = (D+8)·2⁻⁵³) or 8γ'|q|² (cosine): rows
more than 2g from the cutoff are decided, the others are left to `rank_scores`, ties to the lower row. Queries
too far out to quantize, zero queries under `cosine`, and queries with more candidates than fit are scored
against every row by the definition.

The weighted mean takes distances and weights in float64. Weights are rounded to float32 once, at most eight
products are added in float32, and float64 adds these sums: within 10·2⁻²⁴·max|E| = 6e-7·max|E| of the
reference for any k.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cpu.compiled import check, library, pointer
from mclst.kernels.definition.reference import bank_scores, rank_scores
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import DISTANCES, NEIGHBOR_WEIGHTINGS, RANKS, RetrievalSpec

_BLOCK_BYTES = 256 << 20
# Room for a query's ties beyond k; equals `kTies` in bank.h.
_TIES = 64
# Queries per pass over the bank's embedding, and over a slab of its expression: enough to reuse cached rows.
_SEARCH_TASK, _SUM_TASK = 256, 1024
# Genes per slab (four vectors of 16), genes per vector, and rows of one query per cached range of a slab.
_SLAB, _VECTOR, _ROWS_IN_CACHE = 64, 16, 32


class CpuProvider:
    """A bank laid out for the compiled loops.

    embedding: float32 [M, D], expression: float32 [M, G], both finite and in C order. spec.k: 1 … M.
    threads: per call; default OMP_NUM_THREADS, else the cores available to this process.
    isa: instruction set, 0 plain, 1 AVX2, 2 AVX-512, 3 with VNNI, 4 with AMX; default the best one here.
    Memory: 1.5 times the embedding and one copy of the expression. Raises NotCompiled, MemoryError.
    """

    def __init__(
        self,
        embedding: NDArray[np.float32],
        expression: NDArray[np.float32],
        spec: RetrievalSpec,
        *,
        threads: int | None = None,
        isa: int | None = None,
    ) -> None:
        self._library = library()
        best = self._library.mclst_best_lanes()
        self._isa = best if isa is None else min(isa, best)
        self._embedding, self._spec, self._genes = embedding, spec, expression.shape[1]
        self._threads = threads or _threads()
        self._bank = self._library.mclst_bank(
            pointer(embedding, np.float32), *embedding.shape, RANKS.index(spec.rank), self._isa
        )
        if not self._bank:
            raise MemoryError("the bank does not fit in memory; use a machine with more, or a smaller bank")
        weakref.finalize(self, self._library.mclst_free, self._bank)
        self._slabs = [_slab(expression[:, g : g + _SLAB]) for g in range(0, self._genes, _SLAB)]

    def aggregate(self, queries: NDArray[np.float32], *, neighbors: bool) -> RetrievalResult:
        """Retrieve for `queries` float32 [N, D], finite and in C order."""
        n, k = len(queries), self._spec.k
        result = RetrievalResult.empty(n, self._genes, k if neighbors else None)
        step = max(1, _BLOCK_BYTES // (16 * k))
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, n, step):
                block = slice(start, min(start + step, n))
                self._aggregate(queries[block], block, result, pool)
        return result

    def _aggregate(
        self, queries: NDArray[np.float32], block: slice, result: RetrievalResult, pool: ThreadPoolExecutor
    ) -> None:
        n, k = len(queries), self._spec.k
        rows, weight = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        nearest, effective_k = result.nearest[block], result.effective_k[block]
        expression = result.expression[block]

        def search(task: slice) -> None:
            self._search(queries[task], rows[task])
            self._weigh(queries[task], rows[task], weight[task], nearest[task], effective_k[task])
            if result.neighbors is not None:
                result.neighbors[block][task] = self._by_rank(queries[task], rows[task])

        def add(slab_task: tuple[int, slice]) -> None:
            slab, task = slab_task
            self._sum(slab, rows[task], weight[task], expression[task])

        list(pool.map(search, _tasks(n, self._threads, _SEARCH_TASK)))
        per_slab = -(-2 * self._threads // len(self._slabs))
        list(pool.map(add, product(range(len(self._slabs)), _tasks(n, per_slab, _SUM_TASK))))

    def _search(self, queries: NDArray[np.float32], rows: NDArray[np.int32]) -> None:
        """Write the k nearest bank rows of `queries` [n, D], ascending, to `rows` [n, k]."""
        n, k = rows.shape
        if k == len(self._embedding):
            rows[:] = np.arange(k)
            return
        certain, tied = np.empty(n, np.int32), np.empty(n, np.int32)
        ties = np.empty((n, k + _TIES), np.int32)
        check(
            self._library.mclst_search(
                self._bank,
                pointer(queries, np.float32),
                n,
                k,
                pointer(rows, np.int32),
                pointer(certain, np.int32),
                pointer(ties, np.int32),
                pointer(tied, np.int32),
            )
        )
        for i in np.flatnonzero(tied):
            if tied[i] < 0:
                scores = bank_scores(self._spec.rank, queries[i], self._embedding)
                rows[i] = np.sort(np.argsort(scores, kind="stable")[:k])
                continue
            candidates = np.sort(ties[i, : tied[i]])
            scores = rank_scores(self._spec.rank, queries[i], self._embedding[candidates])
            best = np.argsort(scores, kind="stable")[: k - certain[i]]
            rows[i] = np.sort(np.concatenate([rows[i, : certain[i]], candidates[best]]))

    def _weigh(
        self,
        queries: NDArray[np.float32],
        rows: NDArray[np.int32],
        weight: NDArray[np.float32],
        nearest: NDArray[np.float32],
        effective_k: NDArray[np.float32],
    ) -> None:
        n, k = rows.shape
        check(
            self._library.mclst_weigh(
                self._bank,
                pointer(queries, np.float32),
                n,
                k,
                pointer(rows, np.int32),
                DISTANCES.index(self._spec.distance),
                NEIGHBOR_WEIGHTINGS.index(self._spec.weighting),
                self._spec.temperature,
                pointer(weight, np.float32),
                pointer(nearest, np.float32),
                pointer(effective_k, np.float32),
            )
        )

    def _sum(
        self,
        slab: int,
        rows: NDArray[np.int32],
        weight: NDArray[np.float32],
        expression: NDArray[np.float32],
    ) -> None:
        """Write Σ weight·expression over `rows` [n, k] to the columns of one slab in `expression` [n, G]."""
        n, k = rows.shape
        genes = self._slabs[slab]
        check(
            self._library.mclst_slab_sums(
                self._isa,
                pointer(genes, np.float32),
                genes.shape[1] // _VECTOR,
                len(genes),
                pointer(rows, np.int32),
                pointer(weight, np.float32),
                n,
                k,
                pointer(expression, np.float32),
                self._genes,
                slab * _SLAB,
                max(8, _ROWS_IN_CACHE * len(genes) // k),
            )
        )

    def _by_rank(self, queries: NDArray[np.float32], rows: NDArray[np.int32]) -> NDArray[np.int64]:
        ordered = np.empty(rows.shape, np.int64)
        for i, selected in enumerate(rows):
            scores = rank_scores(self._spec.rank, queries[i], self._embedding[selected])
            ordered[i] = selected[np.argsort(scores, kind="stable")]
        return ordered


def _slab(expression: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy genes [M, g], zero-padded to a multiple of _VECTOR."""
    genes = expression.shape[1]
    slab = np.zeros((len(expression), -(-genes // _VECTOR) * _VECTOR), np.float32)
    slab[:, :genes] = expression
    return slab


def _tasks(count: int, multiple: int, max_size: int) -> Iterator[slice]:
    """Divide `count` evenly into tasks of at most `max_size`, their number a multiple of `multiple`."""
    parts = multiple * max(1, -(-count // (multiple * max_size)))
    step = max(1, -(-count // parts))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _threads() -> int:
    """OMP_NUM_THREADS if it is a number, else the cores available to this process."""
    setting = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if setting.isdigit() and int(setting) > 0:
        return int(setting)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
