"""Bundle + slide + spots → expression map: tiles are read, encoded, retrieved and written in a stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.contract import NoWeights
from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.choices import ON_CPU
from mclst.runtime.encoder.ring import Group, Stages
from mclst.runtime.errors import BundleError, InputError, SlideError
from mclst.runtime.expression_map.parts import PartWriter, SlidePart, remove_parts, take_parts
from mclst.runtime.expression_map.row_writer import RowWriter
from mclst.runtime.inference.loaded_model import LoadedModel
from mclst.runtime.inference.model import Model, describe_location
from mclst.runtime.inference.readout import NotFinite
from mclst.runtime.progress import Advance, Notify
from mclst.runtime.report.files import Files
from mclst.runtime.resources import check_limit
from mclst.runtime.run.context import RunContext, RunInputs, RunLog, open_run, retrieval_spec
from mclst.runtime.run.early import LateMap
from mclst.runtime.run.encoded_tiles import EncodedTiles
from mclst.runtime.run.encoder import choose_encoder, stopped_batch
from mclst.runtime.run.hashes import RemoteIdentity, SlideHash, identity_of
from mclst.runtime.run.kept_features import KeptFeatures
from mclst.runtime.run.options import RunOptions
from mclst.runtime.run.outputs import Outputs
from mclst.runtime.run.provenance import BUNDLE, Provenance, run_fingerprint
from mclst.runtime.run.publish import publish, report_stop, summarize
from mclst.runtime.run.report import Run
from mclst.runtime.run.trust import RunTrust, open_trust
from mclst.runtime.slide.base import Slide
from mclst.runtime.tiling.array_pitch import slide_resolution
from mclst.runtime.tiling.bounds import check_spots
from mclst.runtime.tiling.grid import Grid
from mclst.runtime.trust.places import check_stain
from mclst.runtime.trust.verdict import doubt_colors
from mclst.sections.section import Spots
from mclst.sections.tables.spots import read_spots

if TYPE_CHECKING:
    from mclst.runtime.expression_map.writer import MapWriter

__all__ = ["Run", "RunOptions", "predict"]


def predict(
    model: Bundle | Model,
    slide: Slide,
    spots: Spots | Grid | str | Path,
    out: str | Path | None = None,
    options: RunOptions | None = None,
    *,
    advance: Advance = lambda n: None,
    notify: Notify = lambda text: None,
    identity: Mapping[str, str] | None = None,
    shard: SlidePart | None = None,
) -> Run:
    """Predict the expression at each spot and write it as a map.

    Memory does not grow with the number of spots beyond their table. The map appears last, once all other
    files are complete. A run that stops keeps its rows hidden next to `out`; call it again to resume.

    Parameters
    ----------
    model : Bundle or Model
        A bundle; or a `LoadedModel` or `ServedModel`, which stays open from one slide to the next.
    slide : Slide
    spots : Spots, Grid, str or Path
        A table of spots or its path, or a dense grid.
    out : str or Path, optional
        The map, by default `<slide's stem>.h5ad` in the working folder.
    options : RunOptions, optional
    advance : callable
        Called with the number of tiles newly done.
    notify : callable
        Called with notes for the user, as they come up.
    identity : mapping, optional
        What identifies this run, for the report's `record`.
    shard : SlidePart, optional
        This run's share of a slide that several runs split; a run of a part publishes nothing.

    Returns
    -------
    Run

    Raises
    ------
    InputError, OutputError, ResourceError
    """
    check_limit()
    started = time.perf_counter()
    model = LoadedModel(model) if isinstance(model, Bundle) else model
    options = (options or RunOptions()).for_model(model)
    grid = spots if isinstance(spots, Grid) else None
    table = _table(spots)
    if options.genes and grid is None:
        raise InputError("--genes makes a dense image, which needs --grid")
    files, left_out = (options.files or Files()).resolve()
    files.check_genes(model.genes)
    outputs = Outputs.of(Path(out or f"{slide.path.stem}.h5ad"), options, files)
    log = RunLog(advance, notify)
    with identity_of(slide) as slide_hash:
        outputs.check_map(slide, table, model.folder, overwrite=options.overwrite)
        # A stopped run's own files may be replaced, but only once its rows are this run's: see `_stream`.
        check_later = options.resume and outputs.was_stopped
        if not check_later:
            outputs.check_others(overwrite=options.overwrite)
        check_spots(table, slide)
        with log.clock.stage("stain"):
            stain = check_stain(slide, table.xy_px, any_stain=options.any_stain)
        trust = open_trust(model, options, stain)
        if doubt := doubt_colors(stain, trust.calibration):
            log.note(f"{slide.path.name}: {doubt}")
        channels = _channels(options, trust)
        inputs = RunInputs(slide, table, grid, slide_resolution(slide, table, options.mpp))
        spec = retrieval_spec(model, options)
        run: RunContext | None = None
        open_map = partial(_open_writer, outputs.map, model, trust, table, shard)
        with LateMap(open_map, whole=shard is None or shard.part is None) as late:
            try:
                resumes = options.resume and (check_later or shard is not None)
                stopped = late.writer.stopped_fingerprint() if resumes else None
                options, choice = choose_encoder(model, options, stopped, log, len(table))
                # The parts of a slide are computed alike, wherever each one runs.
                batch = stopped_batch(model, options, stopped) if shard is None else options.batch_size
                run = open_run(model, options, choice, inputs, outputs, log, spec, trust, batch)
                if left_out:
                    log.note(left_out)
                _stream(run, late, slide_hash, shard, resumes=resumes, check_outputs=check_later)
                writer = late.writer
                if isinstance(writer, PartWriter):
                    return summarize(run, writer)
                tissue = late.pictures(run)  # what is read for it is part of the provenance
                provenance = Provenance.of(run, slide_hash.sha256)
                summary = publish(
                    run,
                    cast("MapWriter", writer),
                    provenance,
                    tissue,
                    channels=channels,
                    started=started,
                    identity=identity,
                )
            except BaseException as error:
                if run is not None and late.opened is not None:
                    report_stop(run, late.opened, error)
                raise
    remove_parts(outputs.map)
    return summary


def _channels(options: RunOptions, trust: RunTrust) -> Sequence[int]:
    """Columns of the genes of which an image is made."""
    if not options.genes:
        return ()
    from mclst.runtime.report.export.ome_tiff import find_genes

    return find_genes(options.genes, trust.genes)


def _table(spots: Spots | Grid | str | Path) -> Spots:
    if isinstance(spots, Grid):
        return spots.spots
    return spots if isinstance(spots, Spots) else read_spots(Path(spots))


def _open_writer(
    out: Path, model: Model, trust: RunTrust, spots: Spots, shard: SlidePart | None
) -> MapWriter | PartWriter:
    if shard is None or shard.part is None:
        from mclst.runtime.expression_map.writer import MapWriter

        return MapWriter(
            out,
            genes=trust.genes,
            spots=spots,
            overwrite=trust.options.overwrite,
            measured=trust.measured,
            of_genes=_gene_columns(model, trust),
            own_columns=trust.own_columns,
            intervals=trust.options.intervals is not None,
        )
    return PartWriter(out, shard, (len(spots), len(trust.genes)), measured=trust.measured)


def _gene_columns(model: Model, trust: RunTrust) -> dict[str, NDArray[Any]]:
    """Return the columns of `var`: ids, named as scanpy names them, and what is known of the errors."""
    if model.gene_ids is None:
        return trust.of_genes
    ids = np.array(model.gene_ids, dtype=object)
    return {"gene_ids": ids if trust.kept is None else ids[trust.kept], **trust.of_genes}


def _stream(
    run: RunContext,
    late: LateMap,
    slide_hash: SlideHash | RemoteIdentity,
    shard: SlidePart | None,
    *,
    resumes: bool,
    check_outputs: bool,
) -> None:
    """Predict every tile's row; raise SlideError if no tile can be read or the slide changes meanwhile."""
    started = time.perf_counter()
    slide, clock = run.inputs.slide, run.log.clock

    def fingerprint() -> dict[str, str]:
        return run_fingerprint(run, slide_hash.result())

    journaled = resumes and late.writer.stopped_run and _resume(run, late.writer, fingerprint())
    if check_outputs:
        run.outputs.check_others(overwrite=run.options.overwrite or journaled)
    if shard is not None and shard.part is not None:
        run.tiles.done |= ~run.tiles.part_mask(shard.part, shard.parts)
    elif shard is not None:
        writer = late.writer
        if not journaled:
            writer.begin(fingerprint())
            journaled = True
        merged = take_parts(run.outputs.map, shard, writer, len(run.trust.genes), fingerprint(), run.log.note)
        run.tiles.done |= writer.done
        run.log.advance(merged)
    # A calibration measures the embeddings on the host.
    on_device = run.session.provider not in ON_CPU and run.readout.on_device and not run.trust.measured
    with KeptFeatures(run, slide_hash, on_device=on_device) as features:
        journaled = _encode_tiles(
            run, late, fingerprint, slide_hash, features, on_device=on_device, journaled=journaled
        )
        late.ready(run)
        writer = late.writer
        if not journaled:
            # A run that dies while it publishes leaves files that the next one may replace.
            writer.begin(fingerprint())
        run.log.stream_ended = time.perf_counter()
        clock["stream"] = run.log.stream_ended - started
        if not writer.done.any() and not isinstance(writer, PartWriter):
            raise SlideError(f"{slide.path}: no tile can be read; the first says: {run.log.failed[0][1]}")
        slide_hash.check_unchanged()
        features.finish()
    clock["read"] = slide.seconds_opening + run.tiles.seconds_reading
    if slide.seconds_file is not None:
        clock["file"] = slide.seconds_file


def _encode_tiles(
    run: RunContext,
    late: LateMap,
    fingerprint: Callable[[], dict[str, str]],
    slide_hash: SlideHash | RemoteIdentity,
    features: KeptFeatures,
    *,
    on_device: bool,
    journaled: bool,
) -> bool:
    """Encode batches, retrieve several together and write rows; return whether they are journaled."""
    tiles, spots, clock = run.tiles, run.inputs.spots, run.log.clock

    def open_stages() -> Stages:
        return run.session.stages(
            min(tiles.batch_size, len(spots)),
            group_rows=min(tiles.batch_size * tiles.group, len(spots)),
            on_device=on_device,
            clock=clock,
            slots=run.slots,
        )

    def journal() -> bool:
        # Rows outlive this process once the slide's hash, part of the fingerprint, is there.
        nonlocal journaled
        if not journaled and slide_hash.ready:
            late.writer.begin(fingerprint())
            journaled = True
        return journaled

    encoded = EncodedTiles(run, late, journal, on_device=on_device)
    if journaled and not features.stored:
        encoded.restore()
    for group in _groups(run, late, features, encoded, open_stages):
        late.ready(run)
        result = _predict_group(run, group)
        with clock.stage("write"):
            late.writer.write(group.rows, result)
            journal()
        encoded.wrote_rows()
    return journaled


def _groups(
    run: RunContext,
    late: LateMap,
    features: KeptFeatures,
    encoded: EncodedTiles,
    open_stages: Callable[[], Stages],
) -> Iterator[Group]:
    """Encode all tiles and yield groups with what the readout takes."""
    means = run.neighborhood

    def ready(groups: Iterator[Group]) -> Iterator[Group]:
        for group in groups:
            features.add(group)
            given = _with_head(run, group)
            yield from [given] if means is None else means.add(given)

    with closing(features.steps(open_stages)) as steps:
        for number, step in enumerate(steps):
            if number == 0:
                # Not before: until the first tile is encoded, the cores are busy with what it needs.
                late.begin(run)
            elif number == 1:
                late.ready(run)  # what keeps it from that is told now
            run.fail_tiles(step.failed)
            if step.group is not None:
                _check_values(run, step.group)
                yield from ready(encoded.complete(step.group))
            if features.ring is not None:
                encoded.keep(features.ring)
            run.log.advance(step.count)
    yield from ready(encoded.rest())
    if means is not None:
        yield from means.finish()


def _with_head(run: RunContext, group: Group) -> Group:
    if run.head is None:
        return group
    with run.log.clock.stage("head"):
        return Group(group.rows, run.head(group.values))


def _check_values(run: RunContext, group: Group) -> None:
    expected = (len(group.rows), run.encoder_dim)
    if group.values.shape != expected:
        raise BundleError(
            f"{describe_location(run.model)} gives {group.values.shape} where the manifest says {expected}; "
            "the bundle's parts do not belong together, so export it again"
        )


def _predict_group(run: RunContext, group: Group) -> RetrievalResult:
    try:
        with run.log.clock.stage("retrieve"):
            result = run.readout.predict_expression(group.rows, group.values)
    except NotFinite as error:
        spot = run.inputs.spots.id[group.rows[error.row]]
        raise BundleError(
            f"the encoder gave an embedding that is not finite for spot {spot}; export the bundle again"
        ) from error
    except NoWeights as error:
        raise InputError(
            f"the cosines of spot {run.inputs.spots.id[group.rows[error.row]]} to the bank add up to "
            f"{error.total:.3g}, so they are no weights; choose another --weighting"
        ) from error
    with run.log.clock.stage("trust"):
        return run.trust.measure(group.values, result)


def _resume(run: RunContext, writer: RowWriter, fingerprint: Mapping[str, str]) -> bool:
    """Take over a stopped run's rows if its fingerprint is the same; return whether its journal continues."""
    out, server, log = run.outputs.map, run.model.server, run.log
    state = writer.resume(fingerprint)
    if state is None:
        return False
    if state.changed:
        if server and BUNDLE in state.changed.split(", "):
            raise BundleError(
                f"a stopped run of {out} has {state.rows:,} spots of another bundle than the one that "
                f"{server} serves now; serve that one again, or give --no-resume to start over"
            )
        log.note(
            f"a stopped run of {out} with {state.rows:,} spots cannot be resumed, since this one has "
            f"another: {state.changed}; starting over"
        )
        return False
    run.tiles.done |= writer.done
    log.resumed = state.rows
    log.note(f"resuming a stopped run: {state.rows:,} of {len(run.inputs.spots):,} spots are done")
    log.advance(state.rows)
    return True
