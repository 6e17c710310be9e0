"""What a provider of retrieval takes, gives, and raises."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.result import RetrievalResult

# No encoder's embedding is near it, and below it every distance fits float32.
LARGEST = 1e30


_BLOCK_BYTES = 256 << 20


Expression = NDArray[np.float32] | NDArray[np.float16]


class ProviderError(ValueError):
    """A provider is known but cannot run here; the message says what to install."""


class BankRows(Protocol):
    """What retrieval needs of a bank: one row per reference spot."""

    @property
    def embedding(self) -> NDArray[np.float32]:
        """Float32 [M, D]."""

    @property
    def expression(self) -> Expression:
        """Float32 or float16 [M, G]."""


class Provider(Protocol):
    """One way of computing a retrieval over checked inputs."""

    def aggregate(self, queries: NDArray[np.float32], *, neighbours: bool) -> RetrievalResult:
        """Retrieve for `queries` float32 [N, D]."""


@runtime_checkable
class OnDevice(Protocol):
    """A provider that takes queries where they lie on the device."""

    def aggregate_from(self, queries: Any) -> RetrievalResult:
        """Retrieve for `queries` float32 [N, D] on the device."""


class BadQuery(ValueError):
    """Query number `row` is no finite number."""

    def __init__(self, row: int) -> None:
        self.row = row
        super().__init__(
            f"row {row} of the embeddings holds NaN, infinity or a value beyond {LARGEST:g}; "
            "leave that row out or make it again"
        )
