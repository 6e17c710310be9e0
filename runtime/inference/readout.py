"""From what the encoder gives to expression: by retrieval, as it is, or by the part that sees the whole slide."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.device_array import on_device
from mclst.kernels.definition.contract import BadQuery, ProviderError
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.errors import BundleError, InputError, ResourceError
from mclst.runtime.inference.providers import onnxruntime_beside
from mclst.runtime.inference.sequence import SequenceSession, check_positions
from mclst.sections.section import Spots

RETRIEVE_ROWS = 512
"""Embeddings gathered before a retrieval: enough to fill a matrix product, 0.5 MB at 256 dimensions."""


class Readout(Protocol):
    """The step behind the encoder.

    provider: what does it, for people. settings: what decides its values, by the names a user knows.
    on_device: whether it takes what the encoder gave on the device. rows_at_once: spots wanted together. resumable: whether rows do not depend on which others are computed with them.
    """

    provider: str
    settings: dict[str, Any]
    on_device: bool
    rows_at_once: int
    resumable: bool

    def predict_expression(self, rows: NDArray[np.int64], given: Any) -> RetrievalResult:
        """Expression of the spots `rows` int64 [b] from what the encoder gave for them, float32 [b, D].

        Raises NotFinite where one of these is no number.
        """
        ...


class NotFinite(BundleError):
    """What the encoder gave for the spot of number `row` among the given is not finite."""

    def __init__(self, row: int) -> None:
        self.row = row
        super().__init__("the encoder gave an embedding that is not finite; export the bundle again")


def _check_finite(given: NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(given).all(axis=1))
    if len(bad):
        raise NotFinite(int(bad[0]))


class RetrievalReadout:
    """Retrieval from the bundle's bank."""

    rows_at_once = RETRIEVE_ROWS
    resumable = True

    def __init__(
        self, bundle: Bundle, spec: RetrievalSpec, retriever: str = "auto", *, half: bool = False
    ) -> None:
        """retriever: a provider of `Retriever`. half: with "cuda", hold the expression in float16.

        Raises InputError where k is beyond the bank, ResourceError or BundleError as retrieval does.
        """
        rows = len(bundle.bank)
        if spec.k > rows:
            raise InputError(
                f"k is {spec.k} and the bank of {bundle.path} has {rows} spots; give --k of at most {rows}"
            )
        try:
            bank = bundle.bank
            if half and retriever == "cuda":
                bank = replace(bank, expression=bank.expression.astype(np.float16))
            self._retriever = Retriever(bank, spec, retriever)
        except ProviderError as error:
            raise ResourceError(str(error)) from error
        except ValueError as error:
            raise BundleError(f"{bundle.path / 'bank.h5'}: {error}") from error
        self.provider = self._retriever.provider
        self.on_device = self.provider == "cuda"
        self.settings: dict[str, Any] = asdict(spec)
        if half and retriever == "cuda":
            self.settings["bank_precision"] = "float16"

    def predict_expression(self, rows: NDArray[np.int64], given: Any) -> RetrievalResult:
        """Retrieve for embeddings [b, D], on the host or on the device."""
        if not on_device(given):
            _check_finite(given)
        try:
            return self._retriever.aggregate(given)
        except BadQuery as error:
            raise NotFinite(error.row) from error
        except ProviderError as error:
            raise ResourceError(str(error)) from error


class RegressionReadout:
    """The encoder gives expression itself; there is no neighbour to be near or far."""

    provider = "none"
    on_device = False
    rows_at_once = RETRIEVE_ROWS
    resumable = True

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def predict_expression(self, rows: NDArray[np.int64], given: NDArray[np.float32]) -> RetrievalResult:
        """Expression [b, G], unchanged."""
        _check_finite(given)
        return without_neighbours(given)


class SlideReadout:
    """The part of the network that sees all spots of a slide together."""

    provider = "none"
    on_device = False
    resumable = False

    def __init__(self, bundle: Bundle, spots: Spots, provider: str, precision: str) -> None:
        """Open it on "cpu" or "cuda"; raises SpotsError where a spot lacks coordinates the network knows."""
        settings = bundle.manifest.sequence
        assert settings is not None, "the manifest is validated"
        self._array_xy = check_positions(spots, settings.positions)
        self._path = bundle.sequence(precision)
        self._session = SequenceSession(self._path, settings, provider)
        self.rows_at_once = len(spots)
        self.settings: dict[str, Any] = {} if settings.graph is None else settings.graph.model_dump()

    def predict_expression(self, rows: NDArray[np.int64], given: NDArray[np.float32]) -> RetrievalResult:
        """Expression of all spots whose tile could be read, from their features [b, F]; rows in any order."""
        _check_finite(given)
        order = np.argsort(rows)
        found = self._session.predict_expression(given[order], self._array_xy[rows[order]])
        if not np.isfinite(found).all():
            raise BundleError(f"{self._path} gives expression that is not finite; export the bundle again")
        expression = np.empty_like(found)
        expression[order] = found
        return without_neighbours(expression)


def without_neighbours(expression: NDArray[np.float32]) -> RetrievalResult:
    """Expression [b, G] that no reference spot stands behind: nearest and effective_k are NaN."""
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
    half: bool = False,
) -> Readout:
    """What follows the encoder of `bundle`; spec, retriever, half: of a retrieval. provider, precision: the encoder's.

    Raises what the three raise; InputError where a retriever is named and there is no retrieval.
    """
    if retriever != "auto" and bundle.manifest.kind != "retrieval":
        raise InputError(
            f"{bundle.path} is a bundle of {bundle.manifest.system}, which retrieves nothing; leave --retriever out"
        )
    if bundle.manifest.kind == "regression":
        return RegressionReadout()
    if bundle.manifest.kind == "sequence":
        return SlideReadout(bundle, spots, onnxruntime_beside(provider), precision)
    return RetrievalReadout(bundle, spec or bundle.retrieval, retriever, half=half)
