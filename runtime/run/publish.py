"""The end of a run: the map completed and published with what belongs beside it, or the report of a stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from mclst.runtime.encoder.session import Session
from mclst.runtime.errors import MclstError, OutputError
from mclst.runtime.expression_map.parts import PartWriter, RowSink
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.expression_map.writer import MapWriter, shrink
from mclst.runtime.inference.readout import Readout
from mclst.runtime.report.export.ome_tiff import write_ome_tiff
from mclst.runtime.report.figures.contact_sheet import picture_map
from mclst.runtime.report.files import Files, write_files
from mclst.runtime.run.context import Work
from mclst.runtime.run.report import DONE, STOPPED, Run, write_report
from mclst.runtime.tiling.tiles import Tiles

IMAGE_PX = 2000
"""Longest side of the tissue image in the map, as Space Ranger writes it."""


def publish(
    work: Work,
    writer: MapWriter,
    session: Session,
    readout: Readout,
    tiles: Tiles,
    genes: Sequence[str],
    channels: Sequence[int],
    files: Files,
    started: float,
) -> Run:
    """Complete the map, make what belongs beside it, then let the map appear.

    started: of the run, by time.perf_counter. Raises OutputError where something cannot be written.
    """
    outputs = work.outputs
    runs: list[Run] = []

    def beside(hidden_map: Path) -> None:
        drawn: tuple[tuple[str, float], ...] = ()
        if outputs.sheet is not None or outputs.files:
            with work.clock.stage("draw"), open_map(hidden_map) as found:
                if outputs.sheet is not None:
                    drawn = picture_map(found, outputs.sheet)
                picture = shrink(image, scale, files.html_px)
                write_files(found, files, outputs.files, overwrite=True, picture=picture)
        if outputs.dense is not None and work.grid is not None:
            with work.clock.stage("dense"):
                write_ome_tiff(hidden_map, outputs.dense, work.grid, genes, channels)
        work.clock["total"] = work.slide.seconds_opening + time.perf_counter() - started
        run = run_of(work, writer, session, readout, tiles, drawn)
        if outputs.report is not None:
            own = {} if work.record is None else {"record": work.record}
            size = {"map_bytes": hidden_map.stat().st_size}
            write_report(
                outputs.report, DONE, {**_times(work), **work.told, "run": run.as_json(), **size, **own}
            )
        runs.append(run)

    with work.clock.stage("write"):
        image, scale = work.slide.thumbnail(max(IMAGE_PX, files.html_px) if files.html else IMAGE_PX)
        writer.publish(
            image=image,
            image_scale=scale,
            spot_diameter_px=work.spots.spot_diameter_px,
            library_id=work.slide.path.stem,
            run={
                **work.told,
                "failed_spots": len(work.failed),
                "skipped_background": 0 if work.grid is None else work.grid.skipped,
                "seconds": dict(work.clock),
            },
            metadata={"source_image_path": work.slide.path.name},
            beside=beside,
        )
    return runs[0]


def run_of(
    work: Work,
    writer: MapWriter | PartWriter,
    session: Session,
    readout: Readout,
    tiles: Tiles,
    drawn: tuple[tuple[str, float], ...] = (),
) -> Run:
    """What became of the run so far; `drawn`: (gene, Moran's I) of the pictures."""
    outputs = work.outputs
    return Run(
        map_path=outputs.map,
        picture_path=outputs.sheet,
        dense_path=outputs.dense,
        report_path=outputs.report,
        files=outputs.files,
        spots=len(work.spots),
        genes=writer.shape[1],
        failed=tuple(work.failed),
        provider=session.provider,
        precision=work.told["settings"]["precision"],
        retriever=readout.provider,
        notes=tuple(work.notes),
        coordinates=work.spots.coordinates,
        tile=tiles.choice,
        structured=drawn,
        seconds=work.clock.so_far(),
        mpp=work.resolution.mpp,
        mpp_source=work.resolution.source,
        carried_on=work.carried_on,
        skipped=0 if work.grid is None else work.grid.skipped,
    )


def _times(work: Work) -> dict[str, str]:
    return {
        "started": work.started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def report_stop(work: Work, writer: RowSink, error: BaseException) -> None:
    """Leave a report of a run that stops with something done; a report that cannot be written changes nothing."""
    if work.outputs.report is None or not writer.kept:
        return
    content = {
        **_times(work),
        **work.told,
        "spots_done": int(np.count_nonzero(writer.done)),
        "spots_total": len(work.spots),
        "failed": [{"spot": spot, "reason": reason} for spot, reason in work.failed],
        "seconds": dict(work.clock),
    }
    reason = str(error) if isinstance(error, MclstError) else type(error).__name__
    try:
        write_report(work.outputs.report, STOPPED, content, reason=reason)
    except OutputError as refused:
        error.add_note(str(refused))
