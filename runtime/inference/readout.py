"""From the encoder's output to expression: by retrieval, unchanged, or by a network over the whole slide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.device_array import on_device
from mclst.kernels.definition.contract import BadQuery, ProviderError
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever
from mclst.runtime.background import Background
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.errors import BundleError, InputError, ResourceError
from mclst.runtime.inference.slide_network import SlideNetworkSession, check_positions
from mclst.runtime.providers.opening import onnxruntime_beside
from mclst.runtime.trust.measures import add_section_columns, split_section_columns

if TYPE_CHECKING:
    from mclst.sections.section import Spots

RETRIEVE_ROWS = 512
"""Embeddings gathered per retrieval: enough to fill a matrix product, 0.5 MB at 256 dimensions."""


class Readout(Protocol):
    """The step after the encoder.

    rows_at_once: spots to gather per call.
    """

    rows_at_once: int

    @property
    def provider(self) -> str:
        """What runs it, for people."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its values, by the names users know."""

    @property
    def on_device(self) -> bool:
        """Whether it takes device arrays."""

    def predict_expression(self, rows: NDArray[np.int64], features: Any) -> RetrievalResult:
        """Predict the expression of spots from the encoder's output.

        Parameters
        ----------
        rows : int64 array [b]
        features : float32 array [b, D]

        Raises
        ------
        NotFinite
            If a feature is NaN or infinite.
        NoWeights
            If retrieval weighs by similarity, and the similarities of a spot add up to nothing.
        """
        ...


class NotFinite(BundleError):
    """The features of spot `row` are not finite."""

    def __init__(self, row: int) -> None:
        self.row = row
        super().__init__("the encoder gave an embedding that is not finite; export the bundle again")


def _check_finite(features: NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise NotFinite(int(bad[0]))


class RetrievalReadout:
    """Retrieval from the bundle's bank."""

    rows_at_once = RETRIEVE_ROWS

    def __init__(
        self, bundle: Bundle, spec: RetrievalSpec, retriever: str = "auto", *, fp16: bool = False
    ) -> None:
        """retriever: a provider of `Retriever`. fp16: with "cuda", hold the bank's expression in float16.

        Raises InputError if k exceeds the bank, ResourceError or BundleError as retrieval does.
        """
        rows = len(bundle.bank)
        if spec.k > rows:
            raise InputError(
                f"k is {spec.k} and the bank of {bundle.path} has {rows} spots; give --k of at most {rows}"
            )
        if spec.weighting == "similarity" and spec.k < rows:
            raise InputError(
                f"--weighting similarity is over the whole bank of {bundle.path} and k is {spec.k}; give "
                f"--k {rows}"
            )
        try:
            bank = bundle.bank
            self._genes = bank.expression.shape[1]
            if bundle.manifest.tells_section_shares:
                bank = replace(bank, expression=add_section_columns(bank.expression, bank.section))
            if fp16 and retriever == "cuda":
                bank = replace(bank, expression=bank.expression.astype(np.float16))
            self._retriever = Retriever(bank, spec, retriever)
        except ProviderError as error:
            raise ResourceError(str(error)) from error
        except ValueError as error:
            raise BundleError(f"{bundle.path / 'bank.h5'}: {error}") from error
        self.provider = self._retriever.provider
        encoder = bundle.manifest.encoder
        self._width = encoder.embedding_dim
        # Values that are split or averaged first are on the host, and so are matrices for similarity.
        folded = spec.weighting == "similarity"
        self.on_device = self.provider == "cuda" and bundle.manifest.graph_dim == self._width and not folded
        self.settings: dict[str, Any] = asdict(spec)
        if fp16 and retriever == "cuda":
            self.settings["bank_precision"] = "float16"

    def predict_expression(self, rows: NDArray[np.int64], features: Any) -> RetrievalResult:
        """Retrieve for embeddings [b, D], on the host or the device; add a prediction beside them."""
        if not on_device(features):
            _check_finite(features)
        try:
            if features.shape[1] == self._width:
                return split_section_columns(self._retriever.aggregate(features), self._genes)
            embedding = np.ascontiguousarray(features[:, : self._width])
            result = split_section_columns(self._retriever.aggregate(embedding), self._genes)
            return replace(result, expression=result.expression + features[:, self._width :])
        except BadQuery as error:
            raise NotFinite(error.row) from error
        except ProviderError as error:
            raise ResourceError(str(error)) from error


class LateReadout:
    """A `RetrievalReadout` that opens once it is needed, or has begun to: no tile waits for the bank.

    Any use of it but `begin` raises what opening it raises; the next use opens it again.
    """

    rows_at_once = RETRIEVE_ROWS

    def __init__(self, open_it: Callable[[], RetrievalReadout]) -> None:
        self._open = open_it
        self._opening: Background[RetrievalReadout] | None = None

    def begin(self) -> Background[RetrievalReadout]:
        """Begin to open it."""
        if self._opening is None:
            self._opening = Background(self._open, "readout")
        return self._opening

    def wait(self) -> None:
        """Wait until what has begun has ended."""
        if self._opening is not None:
            self._opening.wait()

    def _opened(self) -> RetrievalReadout:
        try:
            return self.begin().result()
        except Exception:
            self._opening = None  # such as a network drive that was away: the next slide tries again
            raise

    @property
    def provider(self) -> str:
        """See Readout."""
        return self._opened().provider

    @property
    def settings(self) -> dict[str, Any]:
        """See Readout."""
        return self._opened().settings

    @property
    def on_device(self) -> bool:
        """See Readout."""
        return self._opened().on_device

    def predict_expression(self, rows: NDArray[np.int64], features: Any) -> RetrievalResult:
        """See Readout."""
        return self._opened().predict_expression(rows, features)


class RegressionReadout:
    """The encoder predicts expression itself, without neighbors; an embedding beside it is left out."""

    provider = "none"
    on_device = False
    rows_at_once = RETRIEVE_ROWS

    def __init__(self, genes: int) -> None:
        self.settings: dict[str, Any] = {}
        self._genes = genes

    def predict_expression(self, rows: NDArray[np.int64], features: NDArray[np.float32]) -> RetrievalResult:
        """Expression [b, G]: the last G of the encoder's values, unchanged."""
        _check_finite(features)
        return without_neighbors(np.ascontiguousarray(features[:, -self._genes :]))


class SlideReadout:
    """A network over all spots of a slide."""

    provider = "none"
    on_device = False

    def __init__(self, bundle: Bundle, spots: Spots, provider: str, precision: str) -> None:
        """Open it next to an encoder on `provider`; raises SpotsError if a spot lacks coordinates."""
        settings = bundle.manifest.slide_network
        assert settings is not None, "the manifest is validated"
        self._array_xy = check_positions(spots, settings.positions)
        self._path = bundle.slide_graph(precision)
        self._session = SlideNetworkSession(self._path, settings, provider)
        self.rows_at_once = len(spots)
        self.settings: dict[str, Any] = {} if settings.graph is None else settings.graph.model_dump()

    def predict_expression(self, rows: NDArray[np.int64], features: NDArray[np.float32]) -> RetrievalResult:
        """Predict all spots whose tile could be read, from their features [b, F]; rows in any order."""
        _check_finite(features)
        order = np.argsort(rows)
        ordered = self._session.predict_expression(features[order], self._array_xy[rows[order]])
        if not np.isfinite(ordered).all():
            raise BundleError(f"{self._path} gives expression that is not finite; export the bundle again")
        expression = np.empty_like(ordered)
        expression[order] = ordered
        return without_neighbors(expression)


def without_neighbors(expression: NDArray[np.float32]) -> RetrievalResult:
    """Wrap expression [b, G] that has no reference spots: nearest and effective_k are NaN."""
    unknown = np.full(len(expression), np.nan, np.float32)
    return RetrievalResult(expression, unknown, unknown)


def open_readout(
    bundle: Bundle,
    spec: RetrievalSpec | None,
    spots: Spots,
    provider: str,
    retriever: str = "auto",
    precision: str = "fp32",
    *,
    fp16: bool = False,
) -> Readout:
    """Open the step after a bundle's encoder.

    Parameters
    ----------
    bundle : Bundle
    spec : RetrievalSpec, optional
        In place of the bundle's own.
    spots : Spots
    provider, precision : str
        The encoder's.
    retriever : str
        A provider of `Retriever`.
    fp16 : bool
        Hold the bank's expression in float16, if the retriever can.

    Raises
    ------
    InputError
        If a retriever is named and the bundle has no bank, or k exceeds the bank.
    SpotsError
        If a spot lacks coordinates the network needs.
    ResourceError, BundleError
        If it cannot be opened.
    """
    if retriever != "auto" and bundle.manifest.kind != "retrieval":
        raise InputError(
            f"{bundle.path} is a bundle of {bundle.manifest.system}, which retrieves nothing; leave "
            "--retriever out"
        )
    if bundle.manifest.kind == "regression":
        return RegressionReadout(bundle.manifest.genes)
    if bundle.manifest.kind == "slide":
        return SlideReadout(bundle, spots, onnxruntime_beside(provider), precision)
    return RetrievalReadout(bundle, spec or bundle.retrieval, retriever, fp16=fp16)
