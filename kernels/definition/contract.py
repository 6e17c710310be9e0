"""The interface of a retrieval provider: inputs, outputs and errors."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.result import RetrievalResult

# Far beyond any encoder's output; below it every distance fits float32.
MAX_MAGNITUDE = 1e30
# Temporary memory of one block of queries or bank rows.
BLOCK_BYTES = 256 << 20

Expression = NDArray[np.float32] | NDArray[np.float16]


class BankRows(Protocol):
    """A bank: one row per reference spot."""

    @property
    def embedding(self) -> NDArray[np.float32]:
        """Float32 [M, D]."""

    @property
    def expression(self) -> Expression:
        """Float32 or float16 [M, G]."""


class Provider(Protocol):
    """One implementation of retrieval; its inputs are already checked."""

    def aggregate(self, queries: NDArray[np.float32], *, neighbors: bool) -> RetrievalResult:
        """Retrieve for `queries` float32 [N, D]."""


@runtime_checkable
class OnDevice(Protocol):
    """A provider that also reads queries from device memory."""

    def aggregate_from(self, queries: Any) -> RetrievalResult:
        """Retrieve for `queries` float32 [N, D] on the device."""


class ProviderError(ValueError):
    """A known provider cannot run here; the message says what to install."""


class NoWeights(ValueError):
    """The similarities of query number `row` to the bank add up to `total`, which is not above 0."""

    def __init__(self, row: int, total: float) -> None:
        self.row, self.total = row, total
        super().__init__(
            f"the cosines of row {row} to the bank add up to {total:.3g}, so they are no weights; choose "
            "another weighting"
        )


class BadQuery(ValueError):
    """Query number `row` holds NaN, infinity or a value beyond MAX_MAGNITUDE."""

    def __init__(self, row: int) -> None:
        self.row = row
        super().__init__(
            f"row {row} of the embeddings holds NaN, infinity or a value beyond {MAX_MAGNITUDE:g}; "
            "leave that row out or make it again"
        )
