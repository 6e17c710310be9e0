"""Many slides in turn: failures are recorded, finished maps are skipped."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclst.runtime.errors import DEFECT, OutputError, ResourceError, describe_error
from mclst.runtime.expression_map.lock import remove_orphaned_journal
from mclst.runtime.expression_map.parts import SlidePart
from mclst.runtime.inference.model import Model
from mclst.runtime.progress import Notify
from mclst.runtime.run.job import Job, Watch, finished, identity, run_job, unwatched
from mclst.sections.location import SlideLocation

DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class SlideOutcome:
    """Outcome of a slide.

    status: DONE, SKIPPED (its map was finished before) or FAILED. unreadable: number of tiles. resumed: spots
    taken over from a stopped run. seconds: of the last attempt. attempts: workers that tried. error,
    exit_code: as a single run would report them. trace: traceback of a defect. worker: host name. notes: for
    the user. verdict, outside_share: see `Run`.
    """

    name: str
    slide: SlideLocation
    map: Path
    status: str
    spots: int = 0
    unreadable: int = 0
    resumed: int = 0
    seconds: float = 0.0
    attempts: int = 1
    error: str = ""
    exit_code: int = 0
    trace: str = ""
    worker: str = ""
    notes: tuple[str, ...] = ()
    verdict: str = ""
    outside_share: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        content: dict[str, Any] = {
            "name": self.name,
            "slide": str(self.slide),
            "status": self.status,
            "map": None if self.status == FAILED else str(self.map),
            "spots": self.spots,
            "unreadable_tiles": self.unreadable,
            "carried_on": self.resumed,
            "seconds": round(self.seconds, 3),
            "attempts": self.attempts,
            "worker": self.worker,
            "notes": list(self.notes),
            "verdict": self.verdict or None,
            "outside_share": self.outside_share,
        }
        if self.status == FAILED:
            content["error"] = {
                "message": self.error,
                "exit_code": self.exit_code,
                "traceback": self.trace or None,
            }
        return content


def run_slide(
    model: Model,
    name: str,
    job: Job,
    *,
    watch: Watch = unwatched,
    notify: Notify = lambda text: None,
    shard: SlidePart | None = None,
) -> SlideOutcome:
    """Predict one slide of a cohort unless its map is finished; errors are part of the outcome.

    Raises ResourceError if the encoder does not open, since no other slide would run either.
    """
    started = time.perf_counter()
    notes: list[str] = []
    options = job.options

    def note(text: str) -> None:
        notes.append(text)
        notify(text)

    def outcome(status: str, **more: Any) -> SlideOutcome:
        return SlideOutcome(
            name,
            job.slide,
            job.map_path,
            status,
            seconds=time.perf_counter() - started,
            worker=socket.gethostname(),
            notes=tuple(notes),
            **more,
        )

    try:
        record = identity(model, job)
        if shard is not None and shard.part is not None:
            run_job(model, job, notify=note, shard=shard)
            return outcome(DONE)
        report, why = finished(job, job.outputs(), record)
        if report is not None:
            remove_orphaned_journal(job.map_path)
            run = report["run"]
            return outcome(
                SKIPPED,
                spots=run["spots"],
                unreadable=len(run["failed"]),
                verdict=run.get("verdict", ""),
                outside_share=run.get("outside_share"),
            )
        if why and not options.overwrite:
            raise OutputError(f"{job.map_path} exists and {why}; choose another --out or add --overwrite")
        done = run_job(model, job, watch=watch, notify=note, identity=record, shard=shard)
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, ResourceError) and error.of_every_slide:
            raise
        sentence, code = describe_error(error)
        trace = "".join(traceback.format_exception(error)) if code == DEFECT else ""
        if code == DEFECT:
            sentence = f"{type(error).__name__}: {error} (a defect in mclst; please report its traceback)"
        return outcome(FAILED, error=sentence, exit_code=code, trace=trace)
    return outcome(
        DONE,
        spots=done.spots,
        unreadable=len(done.failed),
        resumed=done.resumed,
        verdict=done.verdict,
        outside_share=done.outside_share,
    )


def run_in_turn(
    model: Model, jobs: Mapping[str, Job], *, watch: Callable[[str], Watch], notify: Notify
) -> Iterator[SlideOutcome]:
    """Run each job in this process; watch: slide's name → what watches its tiles."""
    for name, job in jobs.items():
        yield run_slide(model, name, job, watch=watch(name), notify=notify)
