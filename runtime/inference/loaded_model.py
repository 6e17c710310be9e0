"""A bundle's encoder and bank, opened once for one slide after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.encoder.session import Session
from mclst.runtime.inference.memory_budget import Fit, device_free_bytes, fit_run
from mclst.runtime.inference.providers import EncoderRequest, open_encoder
from mclst.runtime.inference.readout import Readout, open_readout
from mclst.sections.section import Spots

T = TypeVar("T")


class ModelCache:
    """Opens what a run asks for, and hands the same to the next run that asks for the same; for one run at a time.

    threads: CPU threads of the encoder in place of what a request says; None leaves it.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        self._threads = threads
        self._encoder: tuple[object, tuple[Session, str]] | None = None
        self._readout: tuple[object, Readout] | None = None
        self._fit: tuple[object, Fit] | None = None
        self._device_free: int | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What a map says of who computed it, beside the provider and its engine."""
        return {}

    @property
    def encoder_is_open(self) -> bool:
        """Whether an encoder was opened."""
        return self._encoder is not None

    def encoder(self, provider: str, request: EncoderRequest) -> tuple[Session, str]:
        """See `open_encoder`; the last one that was opened is kept."""
        if self._threads is not None:
            request = replace(request, threads=self._threads)
        key = (provider, replace(request, tell=print))
        self._encoder = _kept(self._encoder, key, lambda: open_encoder(provider, request))
        return self._encoder[1]

    def readout(
        self,
        bundle: Bundle,
        spec: RetrievalSpec | None,
        spots: Spots,
        provider: str,
        retriever: str,
        precision: str,
        *,
        half: bool = False,
    ) -> Readout:
        """See `open_readout`; the last one of a bank is kept, what sees a whole slide is opened for each."""

        def open_it() -> Readout:
            return open_readout(bundle, spec, spots, provider, retriever, precision, half=half)

        if bundle.manifest.kind == "sequence":
            return open_it()
        key = (bundle.sha256, spec, provider, retriever, precision, half)
        self._readout = _kept(self._readout, key, open_it)
        return self._readout[1]

    def before_anything(self) -> None:
        """Look how much of a GPU is free, once, so that `fit` knows what was taken."""
        if self._device_free is None:
            self._device_free = device_free_bytes()

    def fit(self, session: Session, readout: Readout, budget: int, most: int) -> Fit:
        """See `fit_run`; tried once for an encoder and a budget. After `before_anything`."""
        key = (id(session), budget, most)
        self._fit = _kept(
            self._fit, key, lambda: fit_run(session, readout, budget, most, self._device_free or 0)
        )
        return self._fit[1]


def _kept(kept: tuple[object, T] | None, key: object, open_it: Callable[[], T]) -> tuple[object, T]:
    return kept if kept is not None and kept[0] == key else (key, open_it())
