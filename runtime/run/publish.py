"""The end of a run: publish the map and the files next to it, or report that the run stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from mclst.runtime.background import Background
from mclst.runtime.errors import MclstError, OutputError
from mclst.runtime.expression_map.row_writer import RowWriter
from mclst.runtime.report.files import Files, write_files
from mclst.runtime.run.context import RunContext
from mclst.runtime.run.provenance import Provenance
from mclst.runtime.run.report import DONE, STOPPED, Run, write_report
from mclst.runtime.slide.base import Slide
from mclst.runtime.trust.verdict import Verdict
from mclst.sections.tables.geojson import GEOJSON_CELLS

if TYPE_CHECKING:
    from mclst.runtime.expression_map.reader import Map
    from mclst.runtime.expression_map.writer import MapWriter
    from mclst.runtime.report.page.tissue import TissueJpeg


def publish(
    run: RunContext,
    writer: MapWriter,
    provenance: Provenance,
    tissue: TissueJpeg | None,
    *,
    channels: Sequence[int],
    started: float,
    identity: Mapping[str, str] | None,
) -> Run:
    """Complete the map, make the files next to it, then rename the map to its final path.

    tissue: of `put_pictures`.
    channels: columns of `options.genes`. started: of the run, by time.perf_counter. identity: the report's
    `record`.
    """
    outputs, log, inputs = run.outputs, run.log, run.inputs
    content, slide = outputs.content, inputs.slide
    trust = run.trust.of_slide(writer.rows)
    verdict = trust.judge(slide.path)
    record = {**provenance.as_dict(), "trust": verdict.as_dict()}
    if run.options.intervals is not None:
        record["trust"]["intervals_percent"] = run.options.intervals
    summary: Run | None = None
    cells = inputs.spots.path if inputs.spots.variant == GEOJSON_CELLS else None

    def write_other_files(expression_map: Map) -> None:
        nonlocal summary
        drawn: tuple[tuple[str, float], ...] = ()
        if outputs.sheet is not None or outputs.files:
            with log.clock.stage("draw"):
                # Both need it, and each is computed once.
                expression_map.order  # noqa: B018
                sheet = None
                if outputs.sheet is not None:
                    from mclst.runtime.report.figures.contact_sheet import write_contact_sheet

                    path = outputs.sheet
                    sheet = Background(lambda: write_contact_sheet(expression_map, path), "sheet")
                try:
                    notes = write_files(
                        expression_map,
                        content,
                        outputs.files,
                        overwrite=True,
                        tissue=tissue,
                        cells=cells,
                    )
                finally:
                    if sheet is not None:
                        sheet.wait()
                if sheet is not None:
                    drawn = sheet.result()
                for note in notes:
                    log.note(note)
        if outputs.dense is not None and inputs.grid is not None:
            from mclst.runtime.report.export.ome_tiff import write_ome_tiff

            with log.clock.stage("dense"):
                write_ome_tiff(expression_map.path, outputs.dense, inputs.grid, run.options.genes, channels)
        log.clock["total"] = slide.seconds_opening + time.perf_counter() - started
        summary = summarize(run, writer, drawn, verdict)
        if outputs.report is not None:
            report = {
                **_times(run),
                **record,
                "run": summary.as_json(),
                "map_bytes": expression_map.path.stat().st_size,
                **({} if identity is None else {"record": identity}),
            }
            write_report(outputs.report, DONE, report)

    with log.clock.stage("write"):
        writer.publish(
            spot_diameter_px=inputs.spots.spot_diameter_px,
            run={
                **record,
                "failed_spots": len(log.failed),
                "skipped_background": 0 if inputs.grid is None else inputs.grid.skipped,
                "seconds": dict(log.clock),
            },
            metadata={"source_image_path": slide.path.name},
            columns=trust.columns(),
            layers=trust.layers(),
            before_publish=write_other_files,
        )
    assert summary is not None, "publish calls before_publish"
    return summary


def put_pictures(slide: Slide, open_map: Callable[[], MapWriter], content: Files) -> TissueJpeg | None:
    """Put the slide's picture into its map; return that of its page, None without a page.

    open_map: waits for the map's writer. All of it takes a third of a second, and no tile is needed for it.
    """
    image, scale = slide.overview(content.picture_px)
    open_map().put_tissue(image, scale, slide.path.stem)
    if not content.html:
        return None
    from mclst.runtime.expression_map.writer import downscale
    from mclst.runtime.report.page.tissue import encode_tissue

    return encode_tissue(*downscale(image, scale, content.html_px))


def summarize(
    run: RunContext,
    writer: RowWriter,
    drawn: tuple[tuple[str, float], ...] = (),
    verdict: Verdict | None = None,
) -> Run:
    """Summarize the run so far; drawn: (gene, Moran's I) of the contact sheet."""
    outputs, log, inputs = run.outputs, run.log, run.inputs
    reliable = run.trust.of_genes.get("reliable")
    return Run(
        map_path=outputs.map,
        picture_path=outputs.sheet,
        dense_path=outputs.dense,
        report_path=outputs.report,
        files=outputs.files,
        spots=len(inputs.spots),
        genes=writer.shape[1],
        failed=tuple(log.failed),
        provider=run.session.provider,
        precision=run.options.precision,
        choice=run.choice,
        retriever=run.readout.provider,
        notes=tuple(log.notes),
        coordinates=inputs.spots.coordinates,
        tile=str(run.tiles.plan),
        structured=drawn,
        seconds=log.clock.snapshot(),
        mpp=inputs.resolution.mpp,
        mpp_source=inputs.resolution.source,
        resumed=log.resumed,
        reused=log.reused,
        stream_ended=log.stream_ended,
        skipped=0 if inputs.grid is None else inputs.grid.skipped,
        verdict="" if verdict is None else verdict.text,
        outside_share=None if verdict is None else verdict.outside_share,
        reliable_genes=int(reliable.sum()) if reliable is not None else None,
    )


def _times(run: RunContext) -> dict[str, str]:
    return {
        "started": run.log.started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def report_stop(run: RunContext, writer: RowWriter, error: BaseException) -> None:
    """Report a run that stops with rows to resume from; a failure to write it is noted on `error`."""
    if run.outputs.report is None or not writer.resumable_rows:
        return
    content = {
        **_times(run),
        **Provenance.of(run).as_dict(),
        "spots_done": int(np.count_nonzero(writer.done)),
        "spots_total": len(run.inputs.spots),
        "failed": [{"spot": spot, "reason": reason} for spot, reason in run.log.failed],
        "seconds": dict(run.log.clock),
    }
    reason = str(error) if isinstance(error, MclstError) else type(error).__name__
    try:
        write_report(run.outputs.report, STOPPED, content, reason=reason)
    except OutputError as refusal:
        error.add_note(str(refusal))
