"""A worker on a node of a cluster: it opens the bundle once, then runs slides, their parts and merges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cohort.run import DONE, FAILED, SKIPPED, SlideOutcome, run_slide
from mclst.runtime.errors import BundleError, describe_error
from mclst.runtime.expression_map.parts import SlidePart, remove_parts
from mclst.runtime.inference.loaded_model import LoadedModel
from mclst.runtime.providers.choice import EncoderChoice
from mclst.runtime.report.files import Files
from mclst.runtime.run.job import Job, finished, identity, resolve_spots
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.grid import Grid


@dataclass(frozen=True)
class Task:
    """A slide, or a shard of one; attempt: counted from 1."""

    name: str
    job: Job
    shard: SlidePart | None = None
    attempt: int = 1

    @property
    def again(self) -> Task:
        """The next attempt."""
        return replace(self, attempt=self.attempt + 1)


class Worker:
    """Runs tasks one at a time; only the end of its process keeps it from answering.

    Parameters
    ----------
    bundle : Path
        The bundle's folder as this node sees it.
    sha256 : str
        The bundle it must be.
    shard_tiles : int, optional
        Slides with more tiles are split.
    threads : int, optional
        CPU threads of the encoder.
    choice : EncoderChoice
        What runs the encoder, on every worker alike.
    """

    def __init__(
        self,
        bundle: Path,
        sha256: str,
        shard_tiles: int | None,
        threads: int | None,
        choice: EncoderChoice,
    ) -> None:
        self._path, self._sha256, self._choice = bundle, sha256, choice
        self._shard_tiles, self._threads = shard_tiles, threads

    def open(self) -> tuple[str, int] | None:
        """Open the bundle; return None, or the error's sentence and exit code."""
        try:
            bundle = open_bundle(self._path)
            if bundle.sha256 != self._sha256:
                raise BundleError(
                    f"{self._path} is another bundle on this node; show all nodes the same folder"
                )
        except Exception as error:  # noqa: BLE001 - sent to the driver
            return describe_error(error)
        self._model = LoadedModel(bundle, threads=self._threads, choice=self._choice)
        return None

    def run(self, task: Task) -> SlideOutcome | int:
        """Run a task; return its outcome, or the number of parts to split its slide into first."""
        job, shard = task.job, task.shard
        if shard is None:
            parts = self._count_parts(job)
            if parts > 1:
                return parts
        elif shard.part is not None:
            options = replace(
                job.options, picture=False, report=False, files=Files(html=False), overwrite=True
            )
            job = replace(job, options=options)
        outcome = run_slide(self._model, task.name, job, shard=shard)
        if outcome.status == SKIPPED and task.attempt > 1:
            outcome = _done_before(task, outcome)
        return replace(outcome, attempts=task.attempt)

    def _count_parts(self, job: Job) -> int:
        """Return 1 also for a slide that is finished, not to be replaced or split, or fails to open."""
        if self._shard_tiles is None or self._model.manifest.kind == "slide":
            return 1
        try:
            report, other = finished(job, job.outputs(), identity(self._model, job))
            if report is not None or (other and not job.options.overwrite):
                return 1
            with open_slide(job.slide, reader=job.reader) as slide:
                spots = resolve_spots(job, slide)
        except Exception:  # noqa: BLE001 - the run of the whole slide will report it
            return 1
        tiles = len(spots.spots if isinstance(spots, Grid) else spots)
        return -(-tiles // self._shard_tiles)


def _done_before(task: Task, outcome: SlideOutcome) -> SlideOutcome:
    """Handle a map that an earlier attempt finished before its worker died, without cleaning up."""
    if task.shard is not None:
        remove_parts(task.job.map_path)
    note = "an earlier worker finished its map before it died"
    return replace(outcome, status=DONE, notes=(*outcome.notes, note))


def lost(task: Task, why: str) -> SlideOutcome:
    """Return the outcome of a task whose workers all died."""
    return SlideOutcome(
        task.name,
        task.job.slide,
        task.job.map_path,
        FAILED,
        attempts=task.attempt,
        error=f"its worker ended {task.attempt} times ({why}); run it alone, without --cluster, to see why",
        exit_code=1,
    )
