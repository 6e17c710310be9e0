"""The result of a retrieval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RetrievalResult:
    """Expression for N queries and two measures of their neighbors.

    Attributes
    ----------
    expression : float32 [N, G]
        In the units of the bank's expression.
    nearest : float32 [N]
        Smallest distance among the k neighbors, measured by `RetrievalSpec.distance`.
    effective_k : float32 [N]
        1 / Σ w²: 1 if one neighbor has all the weight, k if all weigh the same.
    neighbors : int64 [N, k], optional
        Bank rows by ascending rank score, ties by row; None unless requested.
    """

    expression: NDArray[np.float32]
    nearest: NDArray[np.float32]
    effective_k: NDArray[np.float32]
    neighbors: NDArray[np.int64] | None = None

    @classmethod
    def empty(cls, n: int, genes: int, k: int | None = None) -> RetrievalResult:
        """Uninitialized arrays for `n` queries, with room for `k` neighbors unless None."""
        return cls(
            np.empty((n, genes), np.float32),
            np.empty(n, np.float32),
            np.empty(n, np.float32),
            None if k is None else np.empty((n, k), np.int64),
        )

    def __len__(self) -> int:
        return len(self.expression)
