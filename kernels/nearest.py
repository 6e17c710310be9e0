"""Distance to the nearest of some rows, by the search that retrieval uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever


@dataclass(frozen=True)
class _Rows:
    embedding: NDArray[np.float32]
    expression: NDArray[np.float32]


class NearestSearch:
    """Rows prepared for queries.

    Parameters
    ----------
    rows : float [M, D]
        At least one; used as float32.

    Raises
    ------
    ValueError
        If a value is not finite, or there are no rows.
    ProviderError
        If no provider of retrieval is installed.
    """

    def __init__(self, rows: NDArray[np.floating[Any]]) -> None:
        bank = _Rows(np.ascontiguousarray(rows, np.float32), np.zeros((len(rows), 1), np.float32))
        self._retriever = Retriever(bank, RetrievalSpec(1, "l2", "l2", "uniform"))

    def distances(self, queries: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Euclidean distance float32 [n] of queries [n, D] to the nearest row."""
        return self._retriever.aggregate(np.ascontiguousarray(queries, np.float32)).nearest
