"""The weighted mean of chosen bank rows: distances, weights and sums in float64, float32 out.

Each query's numbers are computed alone and its neighbours are added in order of their row, so a query's result is the
same bits in whatever block, and on however many threads, it is computed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from mclst.kernels import reference
from mclst.kernels.retrieved import Retrieved
from mclst.kernels.spec import Distance, RetrievalSpec

_QUERIES_A_TASK = 32
# Columns of expression summed at once: few enough for the bank's share to stay in a core's cache, no fewer
# than one cache line of float32.
_SLAB_BYTES = 2 << 20
_SLAB_LEAST = 16


def weighted_mean(
    queries: NDArray[np.float32],
    rows: NDArray[np.int64],
    embedding: NDArray[np.float32],
    expression: NDArray[np.float32],
    spec: RetrievalSpec,
    threads: int,
) -> Retrieved:
    """Expression for `queries` [n, D] from their neighbours `rows` [n, k] (ascending) of the bank [M, D], [M, G].

    Temporary memory is about n·(24k + 4G) bytes, beside 2 MiB or 128 bytes per bank row for each thread.
    """
    distance = np.empty(rows.shape)

    def measure(start: int) -> None:
        for i in range(start, min(start + _QUERIES_A_TASK, len(rows))):
            distance[i] = _distances(spec.distance, queries[i : i + 1], embedding[rows[i]])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(measure, range(0, len(rows), _QUERIES_A_TASK)))
        weight = reference.weights(distance, spec)
        sums = _sums(weight, rows, expression, pool)
    return Retrieved(
        expression=sums,
        nearest=distance.min(axis=1).astype(np.float32),
        effective_k=(1 / np.square(weight).sum(axis=1)).astype(np.float32),
    )


def _distances(
    distance: Distance, query: NDArray[np.float32], near: NDArray[np.float32]
) -> NDArray[np.float64]:
    """`reference.distances` of `query` [1, D] to `near` [k, D], l1 and l2 by scipy, which needs no temporaries."""
    if distance == "cosine":
        return reference.distances("cosine", query, near)
    metric: Literal["cityblock", "euclidean"] = "cityblock" if distance == "l1" else "euclidean"
    return np.asarray(cdist(query.astype(np.float64), near.astype(np.float64), metric)[0])


def _sums(
    weight: NDArray[np.float64],
    rows: NDArray[np.int64],
    expression: NDArray[np.float32],
    pool: ThreadPoolExecutor,
) -> NDArray[np.float32]:
    """Σ weight·expression over `rows`, all [n, k], by sparse products with slabs of genes: float32 [n, G]."""
    n, k = rows.shape
    used = np.zeros(len(expression), dtype=bool)
    used[rows] = True
    kept = np.flatnonzero(used)
    place = np.cumsum(used) - 1
    matrix = sp.csr_matrix(
        (weight.ravel(), place[rows].ravel(), np.arange(0, n * k + 1, k)), shape=(n, len(kept))
    )
    sums = np.empty((n, expression.shape[1]), dtype=np.float32)
    width = max(_SLAB_LEAST, _SLAB_BYTES // (8 * max(1, len(kept))) // _SLAB_LEAST * _SLAB_LEAST)

    def add(start: int) -> None:
        genes = slice(start, start + width)
        sums[:, genes] = matrix @ expression[kept, genes].astype(np.float64)

    list(pool.map(add, range(0, expression.shape[1], width)))
    return sums
