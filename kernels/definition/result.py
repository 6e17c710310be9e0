"""What a retrieval gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RetrievalResult:
    """Expression for N queries, and how sure it is.

    expression: float32 [N, G], in the units of the bank's expression.
    nearest: float32 [N], the smallest `distance` (as the spec says it) among the k chosen rows.
    effective_k: float32 [N], 1 / Σ w²: 1 where one neighbour has all the weight, k where all weigh the same.
    neighbours: int64 [N, k] bank rows, best rank first and the lower row first among equals; None unless asked for.
    """

    expression: NDArray[np.float32]
    nearest: NDArray[np.float32]
    effective_k: NDArray[np.float32]
    neighbours: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.expression)
