"""Bundle + slide + spots → expression map: tiles are read, encoded, retrieved and written as they come."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mclst.kernels import RetrievalSpec
from mclst.kernels.retrieved import Retrieved
from mclst.runtime.array_pitch import slide_resolution
from mclst.runtime.bundle import Bundle
from mclst.runtime.completion import publish, report_stop, run_of
from mclst.runtime.dense import check_genes
from mclst.runtime.errors import (
    BundleError,
    InputError,
    SlideError,
)
from mclst.runtime.expression import MapWriter
from mclst.runtime.fingerprint import SlideHash
from mclst.runtime.grid import Grid
from mclst.runtime.memory_budget import half_bank
from mclst.runtime.opened import Opened
from mclst.runtime.outputs import Outputs
from mclst.runtime.parts import PartWriter, RowSink, Share, remove_parts, take_parts
from mclst.runtime.placing import check_places
from mclst.runtime.provenance import made_of, told
from mclst.runtime.providers import ON_CPU, Request
from mclst.runtime.readout import NotFinite, Readout
from mclst.runtime.report.files import Files
from mclst.runtime.ring import Group, Ring
from mclst.runtime.run_report import Run
from mclst.runtime.session import Session
from mclst.runtime.slide import Slide
from mclst.runtime.tiles import Tiles, TileShape
from mclst.runtime.work import Advance, Tell, Work, most_bad_tiles
from mclst.sections.section import Spots
from mclst.sections.spots import read_spots

__all__ = ["Run", "predict"]

MAX_BAD_TILES = "1%"


def predict(
    bundle: Bundle,
    slide: Slide,
    spots: Spots | Grid | str | Path,
    out: str | Path | None = None,
    *,
    provider: str = "auto",
    build: bool = True,
    precision: str = "fp32",
    retrieval: RetrievalSpec | None = None,
    retriever: str = "auto",
    batch_size: int = 16,
    memory_budget: int | None = None,
    workers: int = 2,
    slide_mpp: float | None = None,
    max_bad_tiles: int | str = MAX_BAD_TILES,
    genes: Sequence[str] = (),
    overwrite: bool = False,
    resume: bool = True,
    picture: bool = True,
    report: bool = True,
    files: Files | None = None,
    opened: Opened | None = None,
    record: Mapping[str, Any] | None = None,
    share: Share | None = None,
    advance: Advance = lambda n: None,
    tell: Tell = lambda text: None,
) -> Run:
    """Predict the expression at each spot and write `out`, by default `<slide's stem>.h5ad` in the working folder.

    spots: a table, the path of one, or a grid. precision: of the encoder, one of the bundle's. retrieval: in place of
    the bundle's own. batch_size: tiles encoded at once, with a
    memory_budget (bytes) at most: then batch and ring are as large as fit. workers: reading threads. slide_mpp: µm/px of level 0, where the slide does not say or is wrong.
    max_bad_tiles: how many tiles may be unreadable: a number, or a share as "1%", rounded up. genes: of a grid,
    written to `<out's stem>.genes.ome.tif`. picture: draw `<out's stem>.genes.png`. report: write
    `<out's stem>.run.json`. files: what else to make of the map; by default the page `<out's stem>.html`. resume: carry
    on where a stopped run of the same inputs and settings left off. opened: encoder and bank kept open between runs.
    record: the caller's own words on this run, for its report. share: of a slide whose tiles several runs share, what
    this one does; a run of a part publishes nothing. advance: called with the number of tiles
    done. tell: called with what the user must know at once.

    Memory does not grow with the number of spots beyond their table. The map appears last: where it stands, all is
    there. A run that fails before it wrote anything leaves nothing; one that stops later leaves what it has, hidden
    beside `out`, for the next run, and says so in a note on the exception.
    Raises InputError, OutputError or ResourceError.
    """
    started = time.perf_counter()
    opened = opened or Opened()
    grid = spots if isinstance(spots, Grid) else None
    table = (
        spots.spots
        if isinstance(spots, Grid)
        else spots
        if isinstance(spots, Spots)
        else read_spots(Path(spots))
    )
    out = Path(f"{slide.path.stem}.h5ad") if out is None else Path(out)
    channels = check_genes(genes, bundle.genes)
    encoder = bundle.encoder(precision)
    if genes and grid is None:
        raise InputError("--genes makes a dense image, which needs --grid")
    files, without = (files or Files()).ready()
    files.check_genes(bundle.genes)
    outputs = Outputs.beside(out, picture=picture, dense=bool(genes), report=report, files=files)
    with SlideHash(slide.path) as slide_hash:
        outputs.check_map(slide, table, bundle.path, overwrite=overwrite)
        if not (resume and outputs.was_stopped):
            outputs.check_beside(overwrite=overwrite)
        check_places(table, slide)
        resolution = slide_resolution(slide, table, slide_mpp)
        spec = _spec(bundle, retrieval)
        work = Work(
            bundle,
            slide,
            table,
            grid,
            spec,
            outputs,
            resolution,
            most_bad_tiles(max_bad_tiles, len(table)),
            overwrite,
            advance,
            tell,
            record=record,
        )
        names = bundle.genes
        with _sink(out, names, table, share, overwrite=overwrite) as writer:
            try:
                with work.clock.stage("open"):
                    if memory_budget is not None:
                        opened.before_anything()
                    session, passed = opened.encoder(
                        provider,
                        Request(
                            bundle.path,
                            encoder,
                            precision,
                            batch_size,
                            build=build,
                            tell=work.note,
                        ),
                    )
                    half = half_bank(bundle.manifest.bank_rows, bundle.manifest.genes, memory_budget)
                    readout = opened.readout(
                        bundle, spec, table, session.provider, retriever, precision, half=half
                    )
                    slots = None
                    if memory_budget is not None:
                        fit = opened.fit(session, readout, memory_budget, batch_size)
                        batch_size, slots = fit.batch, fit.slots
                        work.note(fit.text)
                    bundle.check_unchanged()
                if passed:
                    work.note(f"provider {session.provider}; passed over: {passed}")
                if without:
                    work.note(without)
                for note in resolution.notes:
                    work.note(note)
                tile = bundle.manifest.tile
                tiles = Tiles(
                    slide,
                    table.xy_px,
                    TileShape(tile.size_px, tile.mpp, tile.pad),
                    batch_size=batch_size,
                    workers=workers,
                    slide_mpp=resolution.mpp,
                    group=-(-readout.rows_at_once // batch_size),
                )
                work.told = told(bundle, slide, table, resolution, tiles, session, readout)
                work.told["settings"]["precision"] = precision
                work.told["settings"]["max_bad_tiles"] = max_bad_tiles
                if grid is not None:
                    work.told["settings"]["grid_um"] = grid.stride_um
                streaming = time.perf_counter()
                _stream(work, tiles, session, readout, writer, slide_hash, share, resume=resume, slots=slots)
                work.clock["stream"] = time.perf_counter() - streaming
                if not writer.done.any() and not isinstance(writer, PartWriter):
                    raise SlideError(
                        f"{slide.path}: no tile can be read; the first says: {work.failed[0][1]}"
                    )
                slide_hash.check_unchanged()
                work.clock["read"] = slide.seconds_opening + tiles.seconds_reading
                if slide.seconds_file is not None:
                    work.clock["file"] = slide.seconds_file
                work.told["slide"]["sha256"] = slide_hash.result()
                if isinstance(writer, PartWriter):
                    return run_of(work, writer, session, readout, tiles)
                run = publish(work, writer, session, readout, tiles, genes, channels, files, started)
            except BaseException as error:
                report_stop(work, writer, error)
                raise
    if share is not None:
        remove_parts(out, share)
    return run


def _sink(
    out: Path, genes: Sequence[str], spots: Spots, share: Share | None, *, overwrite: bool
) -> MapWriter | PartWriter:
    if share is None or share.part is None:
        return MapWriter(out, genes=genes, spots=spots, overwrite=overwrite)
    return PartWriter(out, share, (len(spots), len(genes)))


def _spec(bundle: Bundle, given: RetrievalSpec | None) -> RetrievalSpec | None:
    """The retrieval of this run; None where the network gives expression itself and none was asked for."""
    if bundle.manifest.kind != "retrieval" and given is None:
        return None
    default = bundle.retrieval
    return given or default


def _stream(
    work: Work,
    tiles: Tiles,
    session: Session,
    readout: Readout,
    writer: RowSink,
    slide_hash: SlideHash,
    share: Share | None,
    *,
    resume: bool,
    slots: int | None,
) -> None:
    """Encode each batch, retrieve some hundred embeddings at once, write them and note them in the journal."""

    def this_run() -> dict[str, str]:
        precision = work.told["settings"]["precision"]
        return made_of(work.bundle, work.spots, tiles, session, precision, readout, slide_hash.result())

    begun = resume and readout.resumable and writer.stopped_run and _carry_on(work, writer, tiles, this_run())
    work.outputs.check_beside(overwrite=work.overwrite or begun)
    if share is not None and share.part is not None:
        tiles.done |= ~tiles.in_part(share.part, share.parts)
    elif share is not None:
        if not begun:
            writer.begin(this_run())
            begun = True
        came = take_parts(work.outputs.map, share, writer, len(work.bundle.genes), this_run(), work.note)
        tiles.done |= writer.done
        work.advance(came)
    stages = session.stages(
        min(tiles.batch_size, len(work.spots)),
        group_rows=min(tiles.batch_size * tiles.group, len(work.spots)),
        on_device=readout.on_device and session.provider not in ON_CPU,
        clock=work.clock,
        slots=slots,
    )
    with closing(Ring(stages).run(tiles)) as steps:
        for step in steps:
            work.fail_tiles(step.failed)
            if step.group is not None:
                found = _express(work, readout, step.group)
                with work.clock.stage("write"):
                    writer.write(step.group.rows, found.expression, found.nearest, found.effective_k)
                    if not begun and slide_hash.ready:
                        writer.begin(this_run())
                        begun = True
            work.advance(step.count)
    if share is not None and not begun:
        writer.begin(this_run())


def _express(work: Work, readout: Readout, group: Group) -> Retrieved:
    expected = (len(group.rows), work.bundle.manifest.encoder.embedding_dim)
    if group.given.shape != expected:
        raise BundleError(
            f"{work.bundle.path} gives {group.given.shape} where the manifest says {expected}; "
            "the bundle's parts do not belong together, so export it again"
        )
    try:
        with work.clock.stage("retrieve"):
            return readout.express(group.rows, group.given)
    except NotFinite as error:
        raise BundleError(
            f"the encoder gave an embedding that is not finite for spot {work.spots.id[group.rows[error.row]]}; "
            "export the bundle again"
        ) from error


def _carry_on(work: Work, writer: RowSink, tiles: Tiles, this_run: Mapping[str, str]) -> bool:
    """Take over what a stopped run left, if it was the same run; says which. Whether its journal goes on."""
    found = writer.carry_on(this_run)
    if found is None:
        return False
    if found.changed:
        work.note(
            f"a stopped run of {work.outputs.map} with {found.rows:,} spots is not carried on, since another is: "
            f"{found.changed}; starting anew"
        )
        return False
    tiles.done |= writer.done
    work.carried_on = found.rows
    work.note(f"carrying on a stopped run: {found.rows:,} of {len(work.spots):,} spots are done")
    work.advance(found.rows)
    return True
