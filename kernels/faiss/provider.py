"""The `faiss` provider: FAISS for the search, scipy for the mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.contract import BLOCK_BYTES, ProviderError
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec


class FaissProvider:
    """Retrieval by FAISS and scipy; see `Provider`."""

    def __init__(
        self, embedding: NDArray[np.float32], expression: NDArray[np.float32], spec: RetrievalSpec
    ) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ProviderError(
                "retrieval with provider 'faiss' needs FAISS, which is not installed; "
                "install mclst[cpu] or mclst[gpu]"
            ) from error
        from mclst.kernels.faiss.nearest import Nearest

        self._embedding, self._expression, self._spec = embedding, expression, spec
        self._threads: int = faiss.omp_get_max_threads()
        self._nearest = Nearest(embedding, spec.rank, spec.k)

    def aggregate(self, queries: NDArray[np.float32], *, neighbors: bool) -> RetrievalResult:
        """See `Provider`."""
        from mclst.kernels.faiss.mean import weighted_mean

        n, genes = len(queries), self._expression.shape[1]
        result = RetrievalResult.empty(n, genes, self._spec.k if neighbors else None)
        step = max(1, BLOCK_BYTES // (48 * self._spec.k + 8 * genes))
        for start in range(0, n, step):
            block = slice(start, start + step)
            rows = self._nearest.rows(queries[block])
            part = weighted_mean(
                queries[block], rows, self._embedding, self._expression, self._spec, self._threads
            )
            result.expression[block], result.nearest[block] = part.expression, part.nearest
            result.effective_k[block] = part.effective_k
            if result.neighbors is not None:
                result.neighbors[block] = self._nearest.by_rank(queries[block], rows)
        return result
