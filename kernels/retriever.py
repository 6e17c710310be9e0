"""The door to retrieval: checks the bank and the queries once, and hands them to a provider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mclst.kernels import reference
from mclst.kernels.device_array import on_device
from mclst.kernels.retrieved import Retrieved
from mclst.kernels.spec import RetrievalSpec

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

    def aggregate(self, queries: NDArray[np.float32], *, neighbours: bool) -> Retrieved:
        """Retrieve for `queries` float32 [N, D]."""


@runtime_checkable
class OnDevice(Protocol):
    """A provider that takes queries where they lie on the device."""

    def aggregate_from(self, queries: Any) -> Retrieved:
        """Retrieve for `queries` float32 [N, D] on the device."""


class Retriever:
    """A bank made ready for queries.

    bank: anything with `embedding` float32 [M, D] and `expression` float32 or float16 [M, G]. Answers are float32 either
        way; "cuda" keeps float16 as it is, in half the memory, and the others widen it, which changes no value.
    provider: "cpu" (compiled loops), "cuda" (a GPU), "faiss" (FAISS, on a GPU where it can, and scipy), "reference"
        (float64, the definition, slow), or "auto": "cpu" where it was compiled, else "faiss". `.provider` is the one in use.

    Every provider chooses the same rows, and the expression is within 1e-6·max|bank expression| of the reference's.
    (Of cuda's dense means, for large k/M, only 4e-6 is proven.)
    Raises ValueError where the bank is not of that form, holds NaN, infinity or a value beyond 1e30, or has fewer than
    spec.k rows, and where the provider is unknown; ProviderError where it is not installed.
    """

    def __init__(self, bank: BankRows, spec: RetrievalSpec, provider: str = "auto") -> None:
        if provider != "auto" and provider not in PROVIDERS:
            raise ValueError(f"provider is {provider!r}; choose one of auto, {', '.join(PROVIDERS)}")
        embedding = _checked("the bank's embedding", bank.embedding)
        half = getattr(bank.expression, "dtype", None) == np.float16
        expression = _checked(
            "the bank's expression", bank.expression.astype(np.float32) if half else bank.expression
        )
        if len(embedding) != len(expression):
            raise ValueError(
                f"the bank has {len(embedding)} rows of embedding and {len(expression)} of expression; give one of each per spot"
            )
        if spec.k > len(embedding):
            raise ValueError(
                f"k is {spec.k} and the bank has {len(embedding)} rows; give k from 1 to {len(embedding)}"
            )
        self.spec = spec
        self.provider = fastest() if provider == "auto" else provider
        self._columns = embedding.shape[1]
        kept = bank.expression if half and self.provider == "cuda" else expression
        self._run = PROVIDERS[self.provider](embedding, kept, spec)

    def aggregate(self, embeddings: NDArray[np.float32], *, neighbours: bool = False) -> Retrieved:
        """Expression for `embeddings` float32 [N, D]; N may be 0.

        neighbours: give the chosen bank rows as well, at some cost.
        With provider "cuda" they may lie on the device: with `__cuda_array_interface__` or DLPack, without `neighbours`.
        Raises ValueError where the embeddings are not float32 [N, D] or hold NaN, infinity or a value beyond 1e30.
        """
        if on_device(embeddings):
            if not isinstance(self._run, OnDevice) or neighbours:
                raise ValueError(
                    f"the embeddings lie on a device, where provider {self.provider!r} does not retrieve"
                    f"{' neighbours' if neighbours else ''}; bring them to the host"
                )
            return self._run.aggregate_from(embeddings)
        queries = _checked("the embeddings", embeddings)
        if queries.shape[1] != self._columns:
            raise ValueError(
                f"the embeddings have {queries.shape[1]} columns and the bank's {self._columns}; "
                "use the bank made with this encoder"
            )
        return self._run.aggregate(queries, neighbours=neighbours)


class _Reference:
    def __init__(
        self, embedding: NDArray[np.float32], expression: NDArray[np.float32], spec: RetrievalSpec
    ) -> None:
        self._bank, self._spec = (embedding, expression), spec

    def aggregate(self, queries: NDArray[np.float32], *, neighbours: bool) -> Retrieved:
        return reference.aggregate(queries, *self._bank, self._spec, neighbours=neighbours)


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
        from mclst.kernels.nearest import Nearest

        self._bank, self._spec = (embedding, expression), spec
        self._threads: int = faiss.omp_get_max_threads()
        self._nearest = Nearest(embedding, spec.rank, spec.k)

    def aggregate(self, queries: NDArray[np.float32], *, neighbours: bool) -> Retrieved:
        from mclst.kernels.mean import weighted_mean

        n, genes = len(queries), self._bank[1].shape[1]
        chosen = np.empty((n, self._spec.k), dtype=np.int64) if neighbours else None
        whole = Retrieved(
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


def _cpu(embedding: NDArray[np.float32], expression: NDArray[np.float32], spec: RetrievalSpec) -> Provider:
    from mclst.kernels.compiled import NotCompiled
    from mclst.kernels.cpu import Cpu

    try:
        return Cpu(embedding, expression, spec)
    except NotCompiled as error:
        raise ProviderError(
            f"retrieval with provider 'cpu' needs its compiled part, and {error}; "
            "install a C++ compiler and mclst again, or choose provider 'faiss'"
        ) from error


def _cuda(embedding: NDArray[np.float32], expression: Expression, spec: RetrievalSpec) -> Provider:
    from mclst.kernels.cuda_provider import Cuda

    half = expression.dtype == np.float16
    return Cuda(embedding, expression.astype(np.float32), spec, half_expression=half)


def fastest() -> str:
    """What "auto" stands for here: "cpu" where it was compiled, else "faiss"."""
    from mclst.kernels.compiled import built

    return "cpu" if built() else "faiss"


PROVIDERS: dict[str, Callable[[Any, Any, RetrievalSpec], Provider]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "faiss": _Faiss,
    "reference": _Reference,
}


def _checked(name: str, array: Any) -> NDArray[np.float32]:
    """`array` in C order, if it is finite float32 of two axes, the second not empty."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 2:
        form = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} is {form}; give float32 of two axes, a row per spot")
    if array.shape[1] == 0:
        raise ValueError(f"{name} has no columns; give at least one")
    step = max(1, _BLOCK_BYTES // (8 * array.shape[1]))
    for start in range(0, len(array), step):
        # NaN fails the comparison as infinity does.
        bad = ~(np.abs(array[start : start + step]) <= LARGEST)
        if bad.any():
            row, column = np.argwhere(bad)[0] + (start, 0)
            raise ValueError(
                f"row {row} of {name} holds {array[row, column]} in column {column}; "
                "leave that row out or make it again"
            )
    return np.ascontiguousarray(array)
