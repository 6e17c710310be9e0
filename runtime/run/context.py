"""A run under way: its inputs, the opened model and the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.encoder.cpu_stages import CpuSession
from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import BundleError, SlideError
from mclst.runtime.inference.head import LinearHead
from mclst.runtime.inference.memory_budget import use_fp16_bank
from mclst.runtime.inference.model import Model, describe_location
from mclst.runtime.inference.neighborhood import NeighborhoodMeans
from mclst.runtime.inference.readout import Readout
from mclst.runtime.progress import Advance, Clock, Notify
from mclst.runtime.providers.batch_choice import prompt_batch
from mclst.runtime.providers.choice import EncoderChoice
from mclst.runtime.run.options import RetrievalError, RunOptions, most_bad_tiles
from mclst.runtime.run.outputs import Outputs
from mclst.runtime.run.trust import RunTrust
from mclst.runtime.slide.base import Slide
from mclst.runtime.tiling.array_pitch import Resolution
from mclst.runtime.tiling.grid import Grid
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.section import Spots

LOGGER = logging.getLogger("mclst")


@dataclass(frozen=True)
class RunInputs:
    """What is predicted; resolution: of the slide's level 0."""

    slide: Slide
    spots: Spots
    grid: Grid | None
    resolution: Resolution


@dataclass
class RunLog:
    """What happened so far.

    resumed: spots taken over from a stopped run. reused: spots whose embedding an earlier run left in the
    cache. stream_ended: when the last row was there, by `time.perf_counter`.
    """

    advance: Advance
    notify: Notify
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: Clock = field(default_factory=lambda: Clock(encode=0.0, retrieve=0.0, write=0.0))
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resumed: int = 0
    reused: int = 0
    stream_ended: float = 0.0

    def note(self, text: str) -> None:
        """Tell the user now and in the report."""
        self.notes.append(text)
        LOGGER.info(text)
        self.notify(text)


@dataclass(frozen=True)
class RunContext:
    """All parts of a run.

    options: with what was chosen in place of "auto". slots: batches in the ring, None: the encoder's default.
    neighborhood: None where spots are independent. head: between encoder and readout, None where the graph
    holds it.
    """

    model: Model
    options: RunOptions
    choice: EncoderChoice
    inputs: RunInputs
    outputs: Outputs
    log: RunLog
    session: Session
    readout: Readout
    tiles: Tiles
    slots: int | None
    trust: RunTrust
    neighborhood: NeighborhoodMeans | None = None
    head: LinearHead | None = None

    @property
    def encoder_dim(self) -> int:
        """Values per tile that the session gives."""
        return self.model.output_dim if self.head is None else self.head.width

    def fail_tiles(self, rows: Sequence[tuple[int, str]]) -> None:
        """Record unreadable tiles; raise SlideError if there are too many."""
        if self.neighborhood is not None:
            # Others are read for their neighbors alone.
            rows = [(row, reason) for row, reason in rows if self.neighborhood.wants(row)]
        if not rows:
            return
        spots, failed = self.inputs.spots, self.log.failed
        failed += [(str(spots.id[row]), reason) for row, reason in rows]
        most_bad = most_bad_tiles(self.options.max_bad_tiles, len(spots))
        if len(failed) > most_bad:
            spot, reason = failed[0]
            raise SlideError(
                f"{self.inputs.slide.path}: more than {most_bad:,} of {len(spots):,} tiles cannot be read, "
                f"first that of spot {spot} ({reason}); copy the slide again, or give --max-bad-tiles"
            )


def retrieval_spec(model: Model, options: RunOptions) -> RetrievalSpec | None:
    """Return the bundle's retrieval with the options' overrides; None without a bank.

    Raises
    ------
    RetrievalError
        If the overrides do not fit.
    BundleError
        If there are overrides and no bank.
    """
    settings = model.manifest.retrieval
    if settings is not None:
        try:
            return replace(settings.spec(), **options.retrieval)
        except ValueError as error:
            raise RetrievalError(str(error)) from error
    if options.retrieval:
        raise BundleError(
            f"{describe_location(model)} is a bundle of {model.manifest.system}, which gives expression "
            "without a bank; leave the retrieval options out"
        )
    return None


def open_run(
    model: Model,
    options: RunOptions,
    choice: EncoderChoice,
    inputs: RunInputs,
    outputs: Outputs,
    log: RunLog,
    spec: RetrievalSpec | None,
    trust: RunTrust,
    given_batch: int | None = None,
) -> RunContext:
    """Open encoder, readout and tiles so that they fit together, or reuse those of the run before.

    given_batch: of other runs of the same map; None to choose one that a slow encoder does not hold up.
    """
    manifest, batch, slots = model.manifest, options.batch_size, None
    with log.clock.stage("open"):
        if options.memory_budget is not None:
            model.measure_free_memory()
        session, skipped = model.encoder(choice.name, batch, build=options.build, notify=log.note)
        head = model.head(session, options.precision)
        readout = model.readout(
            spec,
            inputs.spots,
            session.provider,
            options.retriever,
            options.precision,
            fp16=use_fp16_bank(manifest.bank_rows, manifest.genes, options.memory_budget),
        )
        if options.memory_budget is not None:
            fit = model.fit(session, readout, options.memory_budget, batch)
            batch, slots = fit.batch, fit.slots
            log.note(fit.text)
        if given_batch is not None:
            batch = min(batch, given_batch)
        elif isinstance(session, CpuSession) and session.heavy:
            graph = model.encoder_sha256(session, options.precision)
            assert graph is not None, "only a server has none"
            batch = prompt_batch(session, graph, options.precision, batch)
    if skipped:
        log.note(f"provider {session.provider}; passed over: {skipped}")
    for note in inputs.resolution.notes:
        log.note(note)
    tiles = Tiles(
        inputs.slide,
        inputs.spots.xy_px,
        TileShape(manifest.tile.size_px, manifest.tile.mpp, manifest.tile.pad),
        batch_size=batch,
        workers=options.workers,
        slide_mpp=inputs.resolution.mpp,
        group=-(-readout.rows_at_once // batch),
    )
    means = None
    if manifest.neighborhood is not None:
        means = NeighborhoodMeans(inputs.spots.xy_px, tiles.groups, radius_px(model, inputs))
    return RunContext(
        model, options, choice, inputs, outputs, log, session, readout, tiles, slots, trust, means, head
    )


def radius_px(model: Model, inputs: RunInputs) -> float:
    """Return the radius of the bundle's neighborhood in level-0 px; SlideError if the scale is unknown."""
    settings = model.manifest.neighborhood
    assert settings is not None, "a bundle without a neighborhood has no radius"
    if inputs.resolution.mpp is None:
        raise SlideError(
            f"{inputs.slide.path} does not say how large its pixels are ({inputs.resolution.source}), and "
            f"this model averages over spots within {settings.radius_um:g} µm; give --mpp, the µm per pixel "
            "of the slide"
        )
    return settings.radius_um / inputs.resolution.mpp
