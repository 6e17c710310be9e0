"""What takes a run's tiles to expression: encoder, readout and tiles, opened so that they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mclst.runtime.encoder.session import Session
from mclst.runtime.inference.loaded_model import ModelCache
from mclst.runtime.inference.memory_budget import use_fp16_bank
from mclst.runtime.inference.providers import EncoderRequest
from mclst.runtime.inference.readout import Readout
from mclst.runtime.run.context import Work
from mclst.runtime.run.provenance import told
from mclst.runtime.tiling.tiles import Tiles, TileShape


@dataclass(frozen=True)
class Asked:
    """How the caller of `predict` wants tiles to become expression; see there."""

    provider: str
    build: bool
    precision: str
    retriever: str
    batch_size: int
    memory_budget: int | None
    workers: int
    max_bad_tiles: int | str


@dataclass(frozen=True)
class Machinery:
    """Encoder, readout and tiles of a run.

    opened: where the first two come from. slots: batches in the ring; None: as many as the encoder has by itself.
    """

    opened: ModelCache
    session: Session
    readout: Readout
    tiles: Tiles
    slots: int | None


def open_machinery(work: Work, asked: Asked, opened: ModelCache, notes: Sequence[str]) -> Machinery:
    """Open what `asked` says, or take it as the run before left it open; notes: told once it is.

    Sets `work.told`. Raises what opening an encoder, a bank or the plan of tiles raises.
    """
    bundle, batch, slots = work.bundle, asked.batch_size, None
    with work.clock.stage("open"):
        if asked.memory_budget is not None:
            opened.before_anything()
        request = EncoderRequest(
            bundle.path, bundle.encoder(asked.precision), asked.precision, batch, build=asked.build, tell=work.note
        )  # fmt: skip
        session, passed = opened.encoder(asked.provider, request)
        half = use_fp16_bank(bundle.manifest.bank_rows, bundle.manifest.genes, asked.memory_budget)
        readout = opened.readout(
            bundle, work.spec, work.spots, session.provider, asked.retriever, asked.precision, half=half
        )
        if asked.memory_budget is not None:
            fit = opened.fit(session, readout, asked.memory_budget, batch)
            batch, slots = fit.batch, fit.slots
            work.note(fit.text)
        bundle.check_unchanged()
    if passed:
        work.note(f"provider {session.provider}; passed over: {passed}")
    for note in notes:
        work.note(note)
    tile = bundle.manifest.tile
    tiles = Tiles(
        work.slide,
        work.spots.xy_px,
        TileShape(tile.size_px, tile.mpp, tile.pad),
        batch_size=batch,
        workers=asked.workers,
        slide_mpp=work.resolution.mpp,
        group=-(-readout.rows_at_once // batch),
    )
    about = told(bundle, work.slide, work.spots, work.resolution, tiles, session, readout)
    work.told = {**about, **opened.told}
    settings = work.told["settings"]
    settings["precision"], settings["max_bad_tiles"] = asked.precision, asked.max_bad_tiles
    if work.grid is not None:
        settings["grid_um"] = work.grid.stride_um
    return Machinery(opened, session, readout, tiles, slots)
