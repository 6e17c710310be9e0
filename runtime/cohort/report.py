"""Outcomes of a cohort: `cohort.run.json`, and the table on the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mclst.runtime.atomic import check_writable, remove_stale, write_atomically
from mclst.runtime.cohort.run import DONE, FAILED, SKIPPED, SlideOutcome
from mclst.runtime.console import escape_controls, on_terminal, say, stderr_console
from mclst.runtime.progress import Advance
from mclst.runtime.run.job import Watch
from mclst.runtime.versions import installed_versions

FORMAT = "mclst-cohort/1"
RUNNING, STOPPED = "running", "stopped"
WRITE_SECONDS = 2.0
"""Shortest time between two writes of the report, which grows with the cohort."""
LONGEST_SHOWN = 32


class CohortReport:
    """The outcomes so far, kept on disk as `path`. Raises OutputError."""

    def __init__(self, path: Path, head: Mapping[str, Any], planned: int) -> None:
        """head: the report's content about the whole run. planned: number of slides."""
        check_writable(path, overwrite=True)
        remove_stale(path)
        self.path = path
        self.outcomes: list[SlideOutcome] = []
        self._head = dict(head)
        self._planned = planned
        self._started = datetime.now(UTC).isoformat(timespec="seconds")
        self._written = -WRITE_SECONDS
        self.write(RUNNING)

    def add(self, outcome: SlideOutcome) -> None:
        """Add a slide's outcome."""
        self.outcomes.append(outcome)
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.write(RUNNING)

    def of(self, status: str) -> list[SlideOutcome]:
        """Return the outcomes with a status."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    def as_json(self, status: str, reason: str = "") -> dict[str, Any]:
        """Return the report; status: RUNNING, STOPPED with a reason, FAILED (some slides) or DONE."""
        counts: dict[str, int] = {name: len(self.of(name)) for name in (DONE, SKIPPED, FAILED)}
        return {
            "format": FORMAT,
            "status": status,
            **({"reason": reason} if reason else {}),
            "started": self._started,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._head,
            "versions": installed_versions(),
            "slides_planned": self._planned,
            "counts": {**counts, "left": self._planned - len(self.outcomes)},
            "slides": [outcome.as_json() for outcome in self.outcomes],
        }

    def write(self, status: str, reason: str = "") -> None:
        """Write the report."""
        text = json.dumps(self.as_json(status, reason), indent=2, allow_nan=False) + "\n"
        write_atomically(self.path, text.encode())
        self._written = time.monotonic()


class Board:
    """Prints a row per finished slide; on a terminal, bars of the running ones below."""

    def __init__(self, names: Iterable[str], *, quiet: bool, running: Progress | None) -> None:
        names = list(names)
        self._width = min(LONGEST_SHOWN, max(map(len, names), default=5))
        self._quiet = quiet
        self._running = running
        self._count, self._total = 0, len(names)
        self._notes: set[str] = set()
        self._all = None if running is None else running.add_task("slides", total=len(names))
        digits = 2 * len(str(self._total)) + 4
        say(
            f"{'':>{digits}}  {'slide':<{self._width}}  status   {'spots':>9}  {'seconds':>8}  try",
            quiet=quiet,
        )

    def watch(self, name: str) -> Watch:
        """Return what shows a slide's tiles."""

        @contextmanager
        def watching(count: int) -> Iterator[Advance]:
            if self._running is None:
                yield lambda n: None
                return
            running, task = self._running, self._running.add_task(escape_controls(name), total=count)
            try:
                yield lambda n: running.advance(task, n)
            finally:
                running.remove_task(task)

        return watching

    def notify(self, text: str) -> None:
        """Print a note, unless another slide had the same."""
        if text not in self._notes:
            self._notes.add(text)
            say(f"Note: {text}", quiet=self._quiet)

    def end(self, outcome: SlideOutcome) -> None:
        """Print the row of a finished slide."""
        self._count += 1
        if self._running is not None and self._all is not None:
            self._running.advance(self._all, 1)
        count = f"{self._count:>{len(str(self._total))}} of {self._total}"
        row = f"{count}  {outcome.name:<{self._width}}  {outcome.status:<7}  "
        if outcome.status == FAILED:
            say(f"{row}{outcome.error}", quiet=self._quiet)
            return
        lost = f"  {outcome.unreadable} unreadable, their rows are NaN" if outcome.unreadable else ""
        far = "" if outcome.outside_share is None else f"  {outcome.outside_share:.0%} outside"
        say(
            f"{row}{outcome.spots:>9,}  {outcome.seconds:>8,.1f}  {outcome.attempts:>3}{far}{lost}",
            quiet=self._quiet,
        )


@contextmanager
def board(names: Iterable[str], *, quiet: bool) -> Iterator[Board]:
    """Open a board for these slides on stderr; quiet: print nothing."""
    if quiet or not on_terminal():
        yield Board(names, quiet=quiet, running=None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr_console(), transient=True) as running:
        yield Board(names, quiet=quiet, running=running)
