"""The `faiss` provider: FAISS for the search, scipy for the mean."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.contract import _BLOCK_BYTES, ProviderError
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec


class _Faiss:
    def __init__(
        self, embedding: NDArray[np.float32], expression: NDArray[np.float32], spec: RetrievalSpec
    ) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ProviderError(
                "retrieval with provider 'faiss' needs FAISS, which is not installed; install mclst[cpu] or mclst[gpu]"
            ) from error
        from mclst.kernels.faiss.nearest import Nearest

        self._bank, self._spec = (embedding, expression), spec
        self._threads: int = faiss.omp_get_max_threads()
        self._nearest = Nearest(embedding, spec.rank, spec.k)

    def aggregate(self, queries: NDArray[np.float32], *, neighbours: bool) -> RetrievalResult:
        from mclst.kernels.faiss.mean import weighted_mean

        n, genes = len(queries), self._bank[1].shape[1]
        chosen = np.empty((n, self._spec.k), dtype=np.int64) if neighbours else None
        whole = RetrievalResult(
            np.empty((n, genes), np.float32), np.empty(n, np.float32), np.empty(n, np.float32), chosen
        )
        for block in self._blocks(n, genes):
            rows = self._nearest.rows(queries[block])
            part = weighted_mean(queries[block], rows, *self._bank, self._spec, self._threads)
            whole.expression[block], whole.nearest[block] = part.expression, part.nearest
            whole.effective_k[block] = part.effective_k
            if chosen is not None:
                chosen[block] = self._nearest.by_rank(queries[block], rows)
        return whole

    def _blocks(self, n: int, genes: int) -> Iterator[slice]:
        step = max(1, _BLOCK_BYTES // (48 * self._spec.k + 8 * genes))
        return (slice(start, start + step) for start in range(0, n, step))
