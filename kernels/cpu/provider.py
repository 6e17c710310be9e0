"""The cpu provider: exact retrieval by compiled loops, the queries divided among threads.

The steps are listed at the head of retrieve.cpp. This file holds the bank, cuts the work, decides the ties, and states
why the chosen set is the reference's.

The bank's rows and a query are placed as in `nearest`: centred, scaled by a power of two, and rounded to float32 (x, p;
|x - X| and |p - P| within 2⁻²⁴ of |X| and |P|), cosine among unit vectors. Each is then rounded once more, to a scale of
its own times int16: x̂ = x - δx, p̂ = p - δp, with |δx| and |δp| measured. x̂·p̂ is exact up to its scales, as integers of
length under 46340 have products, and partial sums of products, within int32 (Cauchy-Schwarz); AMX multiplies their bytes
apart and adds modulo 2³², which comes to the same. So

    s = |p|² - 2 x̂·p̂   against   t - |x|² = |P|² - 2 X·P + …
    |x·p - x̂·p̂| <= (|x| + |δx|)|δp| + |δx||p| <= ((|x| + |δx|)·h + |δx|)·ρ,   h the largest |δp|/|p| of the bank,

and with at most 16·2⁻²⁴ (|x| + ρ)² for placing, for |p|² and for the four roundings of s, and the same terms for `cosine`
and for underflow as in `nearest`:

    e = 2ρ·((|x| + |δx|)·h + |δx|) + 16·2⁻²⁴ (|x| + ρ)² + …

ρ bounds |p| where it matters, the largest |p| of the bank or 2(|x| + √s_k) if less; a row further out is more than
|x| + 2√s_k away, and while h + |δx|/|x| < 1/25 neither its t nor its s is among the k smallest. Then, as in `nearest`,

    s < s_k - 2e: a neighbour.   s > s_k + 2e: none.   Between: undecided.

`l1` sums |x - p| in float32, e = γ(D+8)·s_k. The undecided are scored in float64. That sum and the reference's differ in
their order only, so by at most g = 2γ'·t (l1, l2; γ' = (D+8)·2⁻⁵³) or 8γ'|q|² (cosine): rows further than 2g from the
place where the set is cut are decided, and those within are left to `rank_scores`, ties to the lower row. Queries too far
out to be placed, zero queries under `cosine`, and queries with more candidates than there is room for are scored against
every row by the definition.

The weighted mean takes distances and weights in float64; weights are rounded to float32 once, at most eight products
follow one another in float32, and float64 adds these: within 10·2⁻²⁴·max|E| = 6e-7·max|E| of the reference for any k.
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
from mclst.kernels.definition.spec import DISTANCES, RANKS, WEIGHTINGS, RetrievalSpec

_BLOCK_BYTES = 256 << 20
# Ties that come back with a query, beyond k; `kTies` in retrieve.cpp is the same.
_TIES = 64
# Queries that share a pass over the bank's embedding, and over a slab of its expression: enough to reuse what is in cache.
_SEARCH_TASK, _SUM_TASK = 256, 1024
# Genes to a slab, four vectors of 16; and chosen rows of one query while a range of the slab stays in cache.
_SLAB, _STRIP, _ROWS_IN_CACHE = 64, 16, 32


class Cpu:
    """A bank laid out for the compiled loops.

    embedding: float32 [M, D], expression: float32 [M, G], both finite and in C order. spec.k: 1 … M.
    threads: of a call; by default OMP_NUM_THREADS, or else the cores this process may use.
    lanes: the instruction set, 0 plain, 1 AVX2, 2 AVX-512, 3 with VNNI, 4 with AMX; by default the best this machine has.
    Holds the embedding, half as much again, and a copy of the expression. Raises NotCompiled, MemoryError.
    """

    def __init__(
        self,
        embedding: NDArray[np.float32],
        expression: NDArray[np.float32],
        spec: RetrievalSpec,
        *,
        threads: int | None = None,
        lanes: int | None = None,
    ) -> None:
        self._library = library()
        best = self._library.mclst_best_lanes()
        self._lanes = best if lanes is None else min(lanes, best)
        self._embedding, self._spec, self._genes = embedding, spec, expression.shape[1]
        self._threads = threads or _threads()
        self._bank = self._library.mclst_bank(
            pointer(embedding, np.float32), *embedding.shape, RANKS.index(spec.rank), self._lanes
        )
        if not self._bank:
            raise MemoryError("the bank does not fit into memory; use a machine with more, or a smaller bank")
        weakref.finalize(self, self._library.mclst_free, self._bank)
        self._slabs = [_slab(expression[:, g : g + _SLAB]) for g in range(0, self._genes, _SLAB)]

    def aggregate(self, queries: NDArray[np.float32], *, neighbours: bool) -> RetrievalResult:
        """Retrieve for `queries` float32 [N, D], finite and in C order."""
        n, k = len(queries), self._spec.k
        whole = RetrievalResult(
            np.empty((n, self._genes), np.float32),
            np.empty(n, np.float32),
            np.empty(n, np.float32),
            np.empty((n, k), np.int64) if neighbours else None,
        )
        step = max(1, _BLOCK_BYTES // (16 * k))
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, n, step):
                block = slice(start, min(start + step, n))
                self._aggregate(queries[block], block, whole, pool)
        return whole

    def _aggregate(
        self, queries: NDArray[np.float32], block: slice, whole: RetrievalResult, pool: ThreadPoolExecutor
    ) -> None:
        n, k = len(queries), self._spec.k
        rows, weight = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        nearest, effective_k = whole.nearest[block], whole.effective_k[block]
        expression = whole.expression[block]

        def find(some: slice) -> None:
            self._search(queries[some], rows[some])
            self._weigh(queries[some], rows[some], weight[some], nearest[some], effective_k[some])
            if whole.neighbours is not None:
                whole.neighbours[block][some] = self._by_rank(queries[some], rows[some])

        def add(part: tuple[int, slice]) -> None:
            slab, some = part
            self._sum(slab, rows[some], weight[some], expression[some])

        list(pool.map(find, _shares(n, self._threads, _SEARCH_TASK)))
        apiece = -(-2 * self._threads // len(self._slabs))
        list(pool.map(add, product(range(len(self._slabs)), _shares(n, apiece, _SUM_TASK))))

    def _search(self, queries: NDArray[np.float32], rows: NDArray[np.int32]) -> None:
        """The k nearest bank rows of `queries` [n, D], ascending, into `rows` [n, k]."""
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
            among = np.sort(ties[i, : tied[i]])
            scores = rank_scores(self._spec.rank, queries[i], self._embedding[among])
            best = np.argsort(scores, kind="stable")[: k - certain[i]]
            rows[i] = np.sort(np.concatenate([rows[i, : certain[i]], among[best]]))

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
                WEIGHTINGS.index(self._spec.weighting),
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
        """Σ weight·expression over `rows`, both [n, k], for the genes of one slab, into its columns of [n, G]."""
        n, k = rows.shape
        held = self._slabs[slab]
        check(
            self._library.mclst_slab_sums(
                self._lanes,
                pointer(held, np.float32),
                held.shape[1] // _STRIP,
                len(held),
                pointer(rows, np.int32),
                pointer(weight, np.float32),
                n,
                k,
                pointer(expression, np.float32),
                self._genes,
                slab * _SLAB,
                max(8, _ROWS_IN_CACHE * len(held) // k),
            )
        )

    def _by_rank(self, queries: NDArray[np.float32], rows: NDArray[np.int32]) -> NDArray[np.int64]:
        ordered = np.empty(rows.shape, np.int64)
        for i, of in enumerate(rows):
            scores = rank_scores(self._spec.rank, queries[i], self._embedding[of])
            ordered[i] = of[np.argsort(scores, kind="stable")]
        return ordered


def _slab(expression: NDArray[np.float32]) -> NDArray[np.float32]:
    """Some genes [M, g] as a whole number of strips, the rest zero: [M, g…]."""
    genes = expression.shape[1]
    held = np.zeros((len(expression), -(-genes // _STRIP) * _STRIP), np.float32)
    held[:, :genes] = expression
    return held


def _shares(count: int, of: int, at_most: int) -> Iterator[slice]:
    """`count` cut evenly, into a multiple of `of` parts of at most `at_most` each."""
    parts = of * max(1, -(-count // (of * at_most)))
    step = max(1, -(-count // parts))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _threads() -> int:
    """OMP_NUM_THREADS where it is a number, as the libraries beside this one heed it, or the cores this process has."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
