"""Bundle + slide + spots → expression map: tiles are read, encoded, retrieved and written as they come."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.encoder.ring import Group, Ring
from mclst.runtime.errors import BundleError, InputError, SlideError
from mclst.runtime.expression_map.parts import PartWriter, RowSink, SlidePart, remove_parts, take_parts
from mclst.runtime.expression_map.writer import MapWriter
from mclst.runtime.inference.loaded_model import ModelCache
from mclst.runtime.inference.providers import ON_CPU
from mclst.runtime.inference.readout import NotFinite, Readout
from mclst.runtime.progress import Advance, Tell
from mclst.runtime.report.export.ome_tiff import check_genes
from mclst.runtime.report.files import Files
from mclst.runtime.resources import check_limit
from mclst.runtime.run.context import Work, most_bad_tiles
from mclst.runtime.run.hashes import SlideHash
from mclst.runtime.run.options import MAX_BAD_TILES
from mclst.runtime.run.outputs import Outputs
from mclst.runtime.run.provenance import BUNDLE, run_fingerprint
from mclst.runtime.run.publish import publish, report_stop, run_of
from mclst.runtime.run.report import Run
from mclst.runtime.run.setup import Asked, Machinery, open_machinery
from mclst.runtime.slide.base import Slide
from mclst.runtime.tiling.array_pitch import slide_resolution
from mclst.runtime.tiling.bounds import check_spots
from mclst.runtime.tiling.grid import Grid
from mclst.runtime.tiling.tiles import Tiles
from mclst.sections.section import Spots
from mclst.sections.tables.spots import read_spots

__all__ = ["Run", "predict"]


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
    opened: ModelCache | None = None,
    record: Mapping[str, Any] | None = None,
    share: SlidePart | None = None,
    advance: Advance = lambda n: None,
    tell: Tell = lambda text: None,
) -> Run:
    """Predict the expression at each spot and write `out`, by default `<slide's stem>.h5ad` in the working folder.

    spots: a table, the path of one, or a grid. precision: of the encoder, one of the bundle's. retrieval: in place of
    the bundle's own. batch_size: tiles encoded at once, with a memory_budget (bytes) at most: then batch and ring are as
    large as fit. workers: reading threads. slide_mpp: µm/px of level 0, where the slide does not say or is wrong.
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
    check_limit()
    started = time.perf_counter()
    grid = spots if isinstance(spots, Grid) else None
    table = _table(spots)
    out = Path(f"{slide.path.stem}.h5ad") if out is None else Path(out)
    channels = check_genes(genes, bundle.genes)
    bundle.encoder(precision)
    if genes and grid is None:
        raise InputError("--genes makes a dense image, which needs --grid")
    files, without = (files or Files()).ready()
    files.check_genes(bundle.genes)
    outputs = Outputs.beside(out, picture=picture, dense=bool(genes), report=report, files=files)
    asked = Asked(provider, build, precision, retriever, batch_size, memory_budget, workers, max_bad_tiles)
    with SlideHash(slide.path) as slide_hash:
        outputs.check_map(slide, table, bundle.path, overwrite=overwrite)
        if not (resume and outputs.was_stopped):
            outputs.check_beside(overwrite=overwrite)
        check_spots(table, slide)
        resolution, spec = slide_resolution(slide, table, slide_mpp), _spec(bundle, retrieval)
        most_bad = most_bad_tiles(max_bad_tiles, len(table))
        work = Work(
            bundle, slide, table, grid, spec, outputs, resolution, most_bad, overwrite, advance, tell, record=record
        )  # fmt: skip
        with _sink(out, bundle.genes, table, share, overwrite=overwrite) as writer:
            try:
                notes = [*([without] if without else []), *resolution.notes]
                machinery = open_machinery(work, asked, opened or ModelCache(), notes)
                _run_through(work, machinery, writer, slide_hash, share, resume=resume)
                session, readout, tiles = machinery.session, machinery.readout, machinery.tiles
                if isinstance(writer, PartWriter):
                    return run_of(work, writer, session, readout, tiles)
                run = publish(work, writer, session, readout, tiles, genes, channels, files, started)
            except BaseException as error:
                report_stop(work, writer, error)
                raise
    if share is not None:
        remove_parts(out, share)
    return run


def _table(spots: Spots | Grid | str | Path) -> Spots:
    if isinstance(spots, Grid):
        return spots.spots
    return spots if isinstance(spots, Spots) else read_spots(Path(spots))


def _sink(
    out: Path, genes: Sequence[str], spots: Spots, share: SlidePart | None, *, overwrite: bool
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


def _run_through(
    work: Work,
    machinery: Machinery,
    writer: MapWriter | PartWriter,
    slide_hash: SlideHash,
    share: SlidePart | None,
    *,
    resume: bool,
) -> None:
    """Every tile to its row, and what that took noted; SlideError where no tile could be read, or the slide changed."""
    streaming = time.perf_counter()
    _stream(work, machinery, writer, slide_hash, share, resume=resume)
    work.clock["stream"] = time.perf_counter() - streaming
    if not writer.done.any() and not isinstance(writer, PartWriter):
        raise SlideError(f"{work.slide.path}: no tile can be read; the first says: {work.failed[0][1]}")
    slide_hash.check_unchanged()
    work.clock["read"] = work.slide.seconds_opening + machinery.tiles.seconds_reading
    if work.slide.seconds_file is not None:
        work.clock["file"] = work.slide.seconds_file
    work.told["slide"]["sha256"] = slide_hash.result()
    work.told |= machinery.opened.told


def _stream(
    work: Work,
    machinery: Machinery,
    writer: RowSink,
    slide_hash: SlideHash,
    share: SlidePart | None,
    *,
    resume: bool,
) -> None:
    """Encode each batch, retrieve some hundred embeddings at once, write them and note them in the journal."""
    session, readout, tiles = machinery.session, machinery.readout, machinery.tiles

    def this_run() -> dict[str, str]:
        precision = work.told["settings"]["precision"]
        return run_fingerprint(
            work.bundle, work.spots, tiles, session, precision, readout, slide_hash.result()
        )

    new_document = (
        resume and readout.resumable and writer.stopped_run and _carry_on(work, writer, tiles, this_run())
    )
    work.outputs.check_beside(overwrite=work.overwrite or new_document)
    if share is not None and share.part is not None:
        tiles.done |= ~tiles.in_part(share.part, share.parts)
    elif share is not None:
        if not new_document:
            writer.begin(this_run())
            new_document = True
        came = take_parts(work.outputs.map, share, writer, len(work.bundle.genes), this_run(), work.note)
        tiles.done |= writer.done
        work.advance(came)
    stages = session.stages(
        min(tiles.batch_size, len(work.spots)),
        group_rows=min(tiles.batch_size * tiles.group, len(work.spots)),
        on_device=readout.on_device and session.provider not in ON_CPU,
        clock=work.clock,
        slots=machinery.slots,
    )
    with closing(Ring(stages).run(tiles)) as steps:
        for step in steps:
            work.fail_tiles(step.failed)
            if step.group is not None:
                found = _express(work, readout, step.group)
                with work.clock.stage("write"):
                    writer.write(step.group.rows, found)
                    if not new_document and slide_hash.ready:
                        writer.begin(this_run())
                        new_document = True
            work.advance(step.count)
    if share is not None and not new_document:
        writer.begin(this_run())


def _express(work: Work, readout: Readout, group: Group) -> RetrievalResult:
    expected = (len(group.rows), work.bundle.encoder_gives)
    if group.given.shape != expected:
        raise BundleError(
            f"{work.bundle.server or work.bundle.path} gives {group.given.shape} where the manifest says {expected}; "
            "the bundle's parts do not belong together, so export it again"
        )
    try:
        with work.clock.stage("retrieve"):
            return readout.predict_expression(group.rows, group.given)
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
        if work.bundle.server and BUNDLE in found.changed.split(", "):
            raise BundleError(
                f"a stopped run of {work.outputs.map} has {found.rows:,} spots of another bundle than the one that "
                f"{work.bundle.server} serves now; serve that one again, or give --no-resume to start anew"
            )
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
