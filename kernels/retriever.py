"""The public entry point of retrieval: validates bank and queries, then calls a provider."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.device_array import on_device
from mclst.kernels.definition import reference
from mclst.kernels.definition.contract import (
    MAX_MAGNITUDE,
    BankRows,
    Expression,
    OnDevice,
    Provider,
    ProviderError,
)
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.faiss.provider import FaissProvider
from mclst.kernels.similarity import SimilarityProvider

if TYPE_CHECKING:
    from mclst.kernels.cuda.driver import Driver


class Retriever:
    """A bank prepared for queries.

    Parameters
    ----------
    bank : BankRows
        `embedding` float32 [M, D] and `expression` float32 or float16 [M, G]. "cuda" keeps float16 as it is;
        the other providers convert it to float32, which is exact.
    spec : RetrievalSpec
    provider : {"auto", "cpu", "cuda", "faiss", "reference"}
        "cpu": compiled loops. "cuda": a GPU. "faiss": FAISS, on a GPU if possible, and scipy. "reference":
        the slow float64 definition. "auto": "cuda" where a device passes a self-test against the definition,
        else "cpu" if it was compiled, else "faiss".

    Attributes
    ----------
    provider : str
        The provider in use.

    Raises
    ------
    ValueError
        If the provider is unknown, or the bank has other shapes or dtypes, holds NaN, infinity or a value
        beyond 1e30, or has fewer than spec.k rows, or more with weighting "similarity".
    ProviderError
        If the provider is not installed.

    Notes
    -----
    Every provider selects the same rows, and its expression is within 1e-6·max|bank expression| of the
    reference. For the dense means of "cuda" (large k/M) only 4e-6 is proven.
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
                f"the bank has {len(embedding)} rows of embedding and {len(expression)} of expression; "
                "give one of each per spot"
            )
        if spec.k > len(embedding):
            raise ValueError(
                f"k is {spec.k} and the bank has {len(embedding)} rows; give k from 1 to {len(embedding)}"
            )
        if spec.weighting == "similarity" and spec.k < len(embedding):
            raise ValueError(
                f"weighting 'similarity' is over the whole bank and k is {spec.k}; give k {len(embedding)}"
            )
        self.spec = spec
        self._columns = embedding.shape[1]
        on_cuda = bank.expression if half else expression
        folded = spec.weighting == "similarity" and provider != "reference"
        run = _on_device(embedding, on_cuda, spec) if provider == "auto" and not folded else None
        self.provider = provider if provider != "auto" else fastest_on_cpu() if run is None else "cuda"
        stored = on_cuda if self.provider == "cuda" else expression
        if folded:
            self._run: Provider = SimilarityProvider(embedding, expression, spec, PROVIDERS[self.provider])
        else:
            self._run = PROVIDERS[self.provider](embedding, stored, spec) if run is None else run

    def aggregate(self, embeddings: NDArray[np.float32], *, neighbors: bool = False) -> RetrievalResult:
        """Predict expression for embeddings.

        Parameters
        ----------
        embeddings : float32 [N, D]
            N may be 0. With provider "cuda" also a device array (`__cuda_array_interface__` or DLPack).
        neighbors : bool
            Also return the selected bank rows; not available for device arrays.

        Returns
        -------
        RetrievalResult

        Raises
        ------
        ValueError
            If the embeddings are not float32 [N, D], or hold NaN, infinity or a value beyond 1e30; NoWeights
            if the similarities of one add up to nothing.
        """
        if on_device(embeddings):
            if not isinstance(self._run, OnDevice) or neighbors:
                raise ValueError(
                    f"the embeddings are on a device, where provider {self.provider!r} does not retrieve"
                    f"{' neighbors' if neighbors else ''}; copy them to the host"
                )
            return self._run.aggregate_from(embeddings)
        queries = _checked("the embeddings", embeddings)
        if queries.shape[1] != self._columns:
            raise ValueError(
                f"the embeddings have {queries.shape[1]} columns and the bank's {self._columns}; "
                "use the bank made with this encoder"
            )
        return self._run.aggregate(queries, neighbors=neighbors)


class _Reference:
    def __init__(
        self, embedding: NDArray[np.float32], expression: NDArray[np.float32], spec: RetrievalSpec
    ) -> None:
        self._bank, self._spec = (embedding, expression), spec

    def aggregate(self, queries: NDArray[np.float32], *, neighbors: bool) -> RetrievalResult:
        return reference.aggregate(queries, *self._bank, self._spec, neighbors=neighbors)


def _cpu(embedding: NDArray[np.float32], expression: NDArray[np.float32], spec: RetrievalSpec) -> Provider:
    from mclst.kernels.cpu.compiled import NotCompiled
    from mclst.kernels.cpu.provider import CpuProvider

    try:
        return CpuProvider(embedding, expression, spec)
    except NotCompiled as error:
        raise ProviderError(
            f"retrieval with provider 'cpu' needs its compiled part, and {error}; "
            "install a C++ compiler and mclst again, or choose provider 'faiss'"
        ) from error


def _cuda(
    embedding: NDArray[np.float32], expression: Expression, spec: RetrievalSpec, driver: Driver | None = None
) -> Provider:
    from mclst.kernels.cuda.provider import CudaProvider

    half = expression.dtype == np.float16
    return CudaProvider(embedding, expression.astype(np.float32), spec, driver=driver, half_expression=half)


def _on_device(
    embedding: NDArray[np.float32], expression: Expression, spec: RetrievalSpec
) -> Provider | None:
    """The provider "cuda" for "auto"; None without a device, and with a warning where it cannot be used."""
    from mclst.kernels.cuda.devices import first_device

    try:
        driver = first_device()
        if driver is None:
            return None
        from mclst.kernels.cuda.self_test import check_device

        check_device(driver)
        return _cuda(embedding, expression, spec, driver)
    except ValueError as error:
        logging.getLogger("mclst").warning(
            "retrieval runs by %r in place of 'cuda': %s", fastest_on_cpu(), error
        )
        return None


def fastest_on_cpu() -> str:
    """The provider of "auto" without a CUDA device: "cpu" if it was compiled, else "faiss"."""
    from mclst.kernels.cpu.compiled import built

    return "cpu" if built() else "faiss"


PROVIDERS: dict[str, Callable[[Any, Any, RetrievalSpec], Provider]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "faiss": FaissProvider,
    "reference": _Reference,
}


_CHECKED_BYTES = 1 << 20
"""Checked at once: what is made of so many stays in the processor's cache, and no memory is taken for it."""


def _checked(name: str, array: Any) -> NDArray[np.float32]:
    """`array` in C order; ValueError unless it is finite float32 [n, m] with m > 0."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 2:
        form = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} is {form}; give float32 of two axes, a row per spot")
    if array.shape[1] == 0:
        raise ValueError(f"{name} has no columns; give at least one")
    step = max(1, _CHECKED_BYTES // (4 * array.shape[1]))
    for start in range(0, len(array), step):
        # `<=` is also False for NaN.
        bad = ~(np.abs(array[start : start + step]) <= MAX_MAGNITUDE)
        if bad.any():
            row, column = np.argwhere(bad)[0] + (start, 0)
            raise ValueError(
                f"row {row} of {name} holds {array[row, column]} in column {column}; "
                "leave that row out or make it again"
            )
    return np.ascontiguousarray(array)
