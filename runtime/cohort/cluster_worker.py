"""What runs on a node of a cluster: a bundle opened once, then slides, parts of slides, and their merging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cohort.run import DONE, FAILED, SKIPPED, SlideOutcome, run_slide
from mclst.runtime.errors import BundleError, describe_error
from mclst.runtime.expression_map.parts import SlidePart, remove_parts
from mclst.runtime.inference.loaded_model import ModelCache
from mclst.runtime.report.files import Files
from mclst.runtime.run.job import Job, is_finished, resolve_spots
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.grid import Grid

NOTHING_BESIDE = {"picture": False, "report": False, "files": Files(html=False), "overwrite": True}


@dataclass(frozen=True)
class Task:
    """A slide, or a share of one; attempt: counted from 1."""

    name: str
    job: Job
    share: SlidePart | None = None
    attempt: int = 1

    @property
    def again(self) -> Task:
        """The same, once more."""
        return replace(self, attempt=self.attempt + 1)


class Worker:
    """Runs tasks, one at a time; nothing but the end of its process keeps it from answering."""

    def __init__(
        self,
        bundle: Path,
        sha256: str,
        settings: Mapping[str, Any],
        shard_tiles: int | None,
        threads: int | None,
    ) -> None:
        """bundle: its folder as this node sees it, which must be that of `sha256`. threads: of the encoder on a CPU."""
        self._path, self._sha256, self._settings = bundle, sha256, dict(settings)
        self._shard_tiles = shard_tiles
        self._opened = ModelCache(threads=threads)

    def open(self) -> tuple[str, int] | None:
        """Open the bundle; None, or why that cannot be and the exit code of it."""
        try:
            self._bundle = open_bundle(self._path)
            if self._bundle.sha256 != self._sha256:
                raise BundleError(
                    f"{self._path} is another bundle on this node; show all nodes the same folder"
                )
        except Exception as error:  # noqa: BLE001 - sent to whoever asked
            return describe_error(error)
        return None

    def run(self, task: Task) -> SlideOutcome | int:
        """What became of a task; or into how many parts its slide is to be split first."""
        if task.share is None:
            parts = self._parts(task)
            if parts > 1:
                return parts
        settings: dict[str, Any] = dict(self._settings)
        if task.share is not None:
            settings["share"] = task.share
        if task.share is not None and task.share.part is not None:
            settings |= NOTHING_BESIDE
        outcome = run_slide(self._bundle, task.name, task.job, settings, self._opened)
        if outcome.status == SKIPPED and task.attempt > 1:
            outcome = _done_before(task, outcome)
        return replace(outcome, attempts=task.attempt)

    def _parts(self, task: Task) -> int:
        """Into how many parts to split; 1 also where the slide is done, cannot be split, or fails on being looked at."""
        if self._shard_tiles is None or self._bundle.manifest.kind == "sequence":
            return 1
        try:
            if is_finished(self._bundle, task.job, self._settings):
                return 1
            with open_slide(task.job.slide, reader=task.job.reader) as slide:
                places = resolve_spots(task.job, slide)
        except Exception:  # noqa: BLE001 - the run of the whole slide will say it
            return 1
        tiles = len(places.spots if isinstance(places, Grid) else places)
        return -(-tiles // self._shard_tiles)


def _done_before(task: Task, outcome: SlideOutcome) -> SlideOutcome:
    """A map that the attempt before had finished, whose worker ended before it could say so, or tidy up."""
    if task.share is not None:
        remove_parts(task.job.map_path, task.share)
    note = "its map was found finished after a worker had ended"
    return replace(outcome, status=DONE, notes=(*outcome.notes, note))


def lost(task: Task, why: str) -> SlideOutcome:
    """The outcome of a task none of whose workers came back."""
    return SlideOutcome(
        task.name,
        task.job.slide,
        task.job.map_path,
        FAILED,
        attempts=task.attempt,
        error=f"its worker ended {task.attempt} times ({why}); run it alone, without --cluster, to see why",
        exit_code=1,
    )
