"""Many slides, one after another: what fails is recorded, what is finished already is left as it is."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.errors import DEFECT, OutputError, ResourceError, describe_error
from mclst.runtime.inference.loaded_model import ModelCache
from mclst.runtime.progress import Tell
from mclst.runtime.report.files import Files
from mclst.runtime.run.job import Job, Watch, finished, identity, run_job, unwatched

DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class SlideOutcome:
    """What became of a slide.

    status: DONE, SKIPPED (its map was finished before) or FAILED. attempts: workers that tried; unreadable: tiles that
    could not be read; seconds: of the last attempt. error, exit_code, trace: what failed, as a lone run would say it,
    and the traceback of a defect. worker: the machine's name. notes: what its user must know.
    """

    name: str
    slide: Path
    map: Path
    status: str
    spots: int = 0
    unreadable: int = 0
    carried_on: int = 0
    seconds: float = 0.0
    attempts: int = 1
    error: str = ""
    exit_code: int = 0
    trace: str = ""
    worker: str = ""
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        told: dict[str, Any] = {
            "name": self.name,
            "slide": str(self.slide),
            "status": self.status,
            "map": None if self.status == FAILED else str(self.map),
            "spots": self.spots,
            "unreadable_tiles": self.unreadable,
            "carried_on": self.carried_on,
            "seconds": round(self.seconds, 3),
            "attempts": self.attempts,
            "worker": self.worker,
            "notes": list(self.notes),
        }
        if self.status == FAILED:
            told["error"] = {
                "message": self.error,
                "exit_code": self.exit_code,
                "traceback": self.trace or None,
            }
        return told


def run_slide(
    bundle: Bundle,
    name: str,
    job: Job,
    settings: Mapping[str, Any],
    opened: ModelCache,
    *,
    watch: Watch = unwatched,
    tell: Tell = lambda text: None,
) -> SlideOutcome:
    """Predict one slide of a cohort, or find its map finished; whatever goes wrong with it is in the outcome.

    settings: arguments of `predict` that are not the job's own, `report` true among them.
    Raises ResourceError where the encoder does not open, which no other slide would mend.
    """
    started = time.perf_counter()
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        tell(text)

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
        record = identity(bundle, job, settings)
        if not settings["report"]:  # a part of a slide
            run_job(bundle, job, settings, opened=opened, tell=note)
            return outcome(DONE)
        files = settings.get("files") or Files()
        outputs = job.outputs(picture=settings["picture"], report=True, files=files.ready()[0])
        before, why = finished(job, outputs, record)
        if before is not None:
            run = before["run"]
            return outcome(SKIPPED, spots=run["spots"], unreadable=len(run["failed"]))
        if why and not settings["overwrite"]:
            raise OutputError(f"{job.map_path} exists and {why}; choose another --out or add --overwrite")
        done = run_job(bundle, job, settings, opened=opened, record=record, watch=watch, tell=note)
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, ResourceError) and not opened.encoder_is_open:
            raise
        sentence, code = describe_error(error)
        trace = "".join(traceback.format_exception(error)) if code == DEFECT else ""
        if code == DEFECT:
            sentence = f"{type(error).__name__}: {error} (a defect in mclst; please report its traceback)"
        return outcome(FAILED, error=sentence, exit_code=code, trace=trace)
    return outcome(DONE, spots=done.spots, unreadable=len(done.failed), carried_on=done.carried_on)


def run_in_turn(
    bundle: Bundle,
    jobs: Mapping[str, Job],
    settings: Mapping[str, Any],
    opened: ModelCache,
    *,
    watch: Callable[[str], Watch],
    tell: Tell,
) -> Iterator[SlideOutcome]:
    """Each job in this process; opened: kept from one to the next. watch: of each slide by its name, see `run_job`."""
    for name, job in jobs.items():
        yield run_slide(bundle, name, job, settings, opened, watch=watch(name), tell=tell)
