"""A bundle's encoder and readout, opened once for many slides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mclst.kernels.cuda.devices import driver_is_installed
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.background import Background
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import ResourceError
from mclst.runtime.inference.head import LinearHead, SplitEncoders
from mclst.runtime.inference.memory_budget import Fit, device_free_bytes, fit_run
from mclst.runtime.inference.model import EncoderSettings
from mclst.runtime.inference.readout import LateReadout, Readout, RetrievalReadout, open_readout
from mclst.runtime.progress import Notify
from mclst.runtime.providers.candidates import ChoiceRequest, runs_on_cpu
from mclst.runtime.providers.choice import (
    EncoderChoice,
    choose_encoder,
    known_choice,
)
from mclst.runtime.providers.opening import EncoderRequest, open_encoder
from mclst.runtime.providers.timings import Candidate
from mclst.runtime.resources import available_cores
from mclst.runtime.trust.calibration import Calibration

if TYPE_CHECKING:
    from mclst.sections.section import Spots

T = TypeVar("T")


class LoadedModel:
    """A `Model` over a bundle on this machine; it serves one run at a time.

    The last encoder, readout and memory fit are kept, and reused if the next run asks for the same.

    Parameters
    ----------
    bundle : Bundle
    threads : int, optional
        CPU threads of the encoder; all cores by default.
    choice : EncoderChoice, optional
        What runs the encoder, chosen elsewhere, whatever a run asks for.
    slides : int
        How many slides are to be predicted, by which trying encoders is limited.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        choice: EncoderChoice | None = None,
        slides: int = 1,
    ) -> None:
        self.bundle = bundle
        self.manifest, self.sha256 = bundle.manifest, bundle.sha256
        self.folder: Path | None = bundle.path
        self.server = ""
        self.output_dim = bundle.manifest.graph_dim
        self.precisions = bundle.precisions
        self.encoder_settings: EncoderSettings | None = None
        self._threads = threads
        self._given = choice
        self._slides = slides
        self._split = SplitEncoders(bundle)
        self._preparing: Background[None] | None = None
        self._late_readout: tuple[object, LateReadout] | None = None
        self._choice: tuple[object, EncoderChoice] | None = None
        self._encoder: tuple[object, tuple[Session, str]] | None = None
        self._readout: tuple[object, Readout] | None = None
        self._fit: tuple[object, Fit] | None = None
        self._device_free: int | None = None

    @property
    def genes(self) -> list[str]:
        """See Model."""
        return self.bundle.genes

    @property
    def gene_ids(self) -> list[str] | None:
        """See Model."""
        return self.bundle.gene_ids

    @property
    def calibration(self) -> Calibration | None:
        """See Model."""
        return self.bundle.calibration

    def server_record(self) -> dict[str, Any] | None:
        """See Model."""
        return None

    def prepare(
        self, provider: str, precision: str, batch_size: int, *, retriever: str, retrieval: Mapping[str, Any]
    ) -> None:
        """See Model; on a GPU nothing is prepared, since a context belongs to the thread that opened it."""
        if self._encoder is not None or self._preparing is not None:
            return

        def open_known() -> None:
            if not runs_on_cpu(provider):
                return
            request = ChoiceRequest(provider, precision, batch_size, self._threads or available_cores())
            choice = self._given or known_choice(self.bundle, request)
            if choice is not None:
                self._open(choice.name, batch_size, build=False, notify=lambda text: None)

        self._preparing = Background(open_known, "prepare")
        if self.manifest.retrieval is None or (retriever in ("auto", "cuda") and driver_is_installed()):
            return
        with suppress(ValueError):  # the run refuses these overrides
            spec = replace(self.manifest.retrieval.spec(), **retrieval)
            late = LateReadout(lambda: RetrievalReadout(self.bundle, spec, retriever))
            self._late_readout = (spec, retriever), late

    def wait(self) -> None:
        """See Model."""
        self._wait_for_encoder()
        if self._late_readout is not None:
            self._late_readout[1].wait()

    def _wait_for_encoder(self) -> None:
        # What failed fails again, in the thread that asks for it.
        if self._preparing is not None:
            self._preparing.wait()

    def choose_encoder(
        self, request: ChoiceRequest, notify: Notify, *, run_tiles: int | None = None
    ) -> EncoderChoice:
        """See Model and `choose_encoder`; made once for all runs that ask for the same."""
        self._wait_for_encoder()
        if self._given is not None:
            self.bundle.encoder(self._given.precision)
            return self._given
        request = replace(request, threads=self._threads or available_cores())
        sessions: dict[Candidate, Session] = {}
        opener = partial(self._opener, batch_size=request.batch, build=request.build, notify=notify)
        with self._for_every_slide():
            self._choice = _reuse(
                self._choice,
                request,
                lambda: choose_encoder(
                    self.bundle,
                    request,
                    lambda name: opener(name)[1]()[0],
                    notify,
                    sessions,
                    run_tiles=None if run_tiles is None else run_tiles * self._slides,
                ),
            )
        choice = self._choice[1]
        if choice.name in sessions:
            self._encoder = opener(choice.name)[0], (sessions[choice.name], "")
        return choice

    def pearson_kept(self, precision: str) -> float | None:
        """See Model."""
        return self.bundle.pearson_kept(precision)

    def check_unchanged(self) -> None:
        """See Model."""
        self.bundle.check_unchanged()

    def encoder(
        self, name: Candidate, batch_size: int, *, build: bool, notify: Notify
    ) -> tuple[Session, str]:
        """See Model and `open_encoder`."""
        self._wait_for_encoder()
        with self._for_every_slide():
            return self._open(name, batch_size, build=build, notify=notify)

    @contextmanager
    def _for_every_slide(self) -> Iterator[None]:
        """What keeps the first encoder from opening keeps it from every slide."""
        try:
            yield
        except ResourceError as error:
            error.of_every_slide = self._encoder is None
            raise

    def _open(self, name: Candidate, batch_size: int, *, build: bool, notify: Notify) -> tuple[Session, str]:
        self._encoder = _reuse(self._encoder, *self._opener(name, batch_size, build=build, notify=notify))
        return self._encoder[1]

    def _opener(
        self, name: Candidate, batch_size: int, *, build: bool, notify: Notify
    ) -> tuple[object, Callable[[], tuple[Session, str]]]:
        """Return what tells this encoder from another, and a function that opens it."""
        provider, precision, lanes = name
        request = EncoderRequest(
            self.bundle.path,
            self.bundle.encoder(precision),
            precision,
            batch_size,
            build,
            self._threads,
            lanes,
            notify,
            lambda on: self._split.encoder(on, precision),
        )
        # Whether and how it was built does not tell one encoder from another.
        return (provider, replace(request, notify=print, build=True)), lambda: open_encoder(provider, request)

    def head(self, session: Session, precision: str) -> LinearHead | None:
        """See Model."""
        return self._split.head(session.provider, precision)

    def encoder_sha256(self, session: Session, precision: str) -> str:
        """See Model."""
        return self._split.encoder_sha256(session.provider, precision)

    def readout(
        self,
        spec: RetrievalSpec | None,
        spots: Spots,
        provider: str,
        retriever: str,
        precision: str,
        *,
        fp16: bool,
    ) -> Readout:
        """See Model and `open_readout`; a readout over a whole slide is opened for each slide."""

        def open_it() -> Readout:
            if self._late_readout is not None and self._late_readout[0] == (spec, retriever):
                return self._late_readout[1]
            return open_readout(self.bundle, spec, spots, provider, retriever, precision, fp16=fp16)

        if self.manifest.kind == "slide":
            return open_it()
        self._readout = _reuse(self._readout, (spec, provider, retriever, precision, fp16), open_it)
        return self._readout[1]

    def measure_free_memory(self) -> None:
        """See Model; only the first call counts."""
        if self._device_free is None:
            self._device_free = device_free_bytes()

    def fit(self, session: Session, readout: Readout, budget: int, max_batch: int) -> Fit:
        """See Model and `fit_run`; measured once per encoder and budget."""
        key = (id(session), budget, max_batch)
        self._fit = _reuse(
            self._fit, key, lambda: fit_run(session, readout, budget, max_batch, self._device_free or 0)
        )
        return self._fit[1]


def _reuse(last: tuple[object, T] | None, key: object, open_it: Callable[[], T]) -> tuple[object, T]:
    return last if last is not None and last[0] == key else (key, open_it())
