"""From what the encoder gives to expression: by retrieval, as it is, or by the part that sees the whole slide."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mclst.kernels import ProviderError, RetrievalSpec, Retriever
from mclst.kernels.retrieved import Retrieved
from mclst.runtime.bundle import Bundle
from mclst.runtime.errors import BundleError, InputError, ResourceError
from mclst.runtime.sequence import SequenceSession, check_positions
from mclst.sections.section import Spots

RETRIEVE_ROWS = 512
"""Embeddings gathered before a retrieval: enough to fill a matrix product, 0.5 MB at 256 dimensions."""


class Readout(Protocol):
    """The step behind the encoder.

    provider: what does it, for people. settings: what decides its values, by the names a user knows.
    rows_at_once: spots wanted together. resumable: whether rows do not depend on which others are computed with them.
    """

    provider: str
    settings: dict[str, Any]
    rows_at_once: int
    resumable: bool

    def express(self, rows: NDArray[np.int64], given: NDArray[np.float32]) -> Retrieved:
        """Expression of the spots `rows` int64 [b] from what the encoder gave for them, float32 [b, D]."""
        ...


class FromBank:
    """Retrieval from the bundle's bank."""

    rows_at_once = RETRIEVE_ROWS
    resumable = True

    def __init__(self, bundle: Bundle, spec: RetrievalSpec) -> None:
        """Raises InputError where k is beyond the bank, ResourceError or BundleError as retrieval does."""
        rows = len(bundle.bank)
        if spec.k > rows:
            raise InputError(
                f"k is {spec.k} and the bank of {bundle.path} has {rows} spots; give --k of at most {rows}"
            )
        try:
            self._retriever = Retriever(bundle.bank, spec)
        except ProviderError as error:
            raise ResourceError(str(error)) from error
        except ValueError as error:
            raise BundleError(f"{bundle.path / 'bank.h5'}: {error}") from error
        self.provider = self._retriever.provider
        self.settings: dict[str, Any] = asdict(spec)

    def express(self, rows: NDArray[np.int64], given: NDArray[np.float32]) -> Retrieved:
        """Retrieve for embeddings [b, D]."""
        return self._retriever.aggregate(given)


class Direct:
    """The encoder gives expression itself; there is no neighbour to be near or far."""

    provider = "none"
    rows_at_once = RETRIEVE_ROWS
    resumable = True

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def express(self, rows: NDArray[np.int64], given: NDArray[np.float32]) -> Retrieved:
        """Expression [b, G], unchanged."""
        return _without_neighbours(given)


class OverSlide:
    """The part of the network that sees all spots of a slide together."""

    provider = "none"
    resumable = False

    def __init__(self, bundle: Bundle, spots: Spots, provider: str) -> None:
        """Open it on "cpu" or "cuda"; raises SpotsError where a spot lacks coordinates the network knows."""
        settings = bundle.manifest.sequence
        assert settings is not None, "the manifest is validated"
        self._array_xy = check_positions(spots, settings.positions)
        self._session = SequenceSession(bundle.sequence_path, settings, provider)
        self._path = bundle.sequence_path
        self.rows_at_once = len(spots)
        self.settings: dict[str, Any] = {} if settings.graph is None else settings.graph.model_dump()

    def express(self, rows: NDArray[np.int64], given: NDArray[np.float32]) -> Retrieved:
        """Expression of all spots whose tile could be read, from their features [b, F]; rows in any order."""
        order = np.argsort(rows)
        found = self._session.express(given[order], self._array_xy[rows[order]])
        if not np.isfinite(found).all():
            raise BundleError(f"{self._path} gives expression that is not finite; export the bundle again")
        expression = np.empty_like(found)
        expression[order] = found
        return _without_neighbours(expression)


def _without_neighbours(expression: NDArray[np.float32]) -> Retrieved:
    unknown = np.full(len(expression), np.nan, np.float32)
    return Retrieved(expression, unknown, unknown)


def open_readout(bundle: Bundle, spec: RetrievalSpec | None, spots: Spots, provider: str) -> Readout:
    """What follows the encoder of `bundle`; spec: of a retrieval. provider: "cpu" or "cuda", as the encoder's.

    Raises what the three raise.
    """
    if bundle.manifest.kind == "regression":
        return Direct()
    if bundle.manifest.kind == "sequence":
        return OverSlide(bundle, spots, provider)
    return FromBank(bundle, spec or bundle.retrieval)
