"""The border between a command and its user: sentences, exit codes, progress."""

from __future__ import annotations

import functools
import json
import math
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, NoReturn, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mclst.runtime.atomic import check_apart, check_writable, write_whole
from mclst.runtime.entry_points import STOPS, install_signal_handlers
from mclst.runtime.errors import DEFECT, Terminated, describe_error

P = ParamSpec("P")
T = TypeVar("T")

console = Console(stderr=True, highlight=False)
"""People read stderr; stdout carries data alone."""

LINE_SECONDS = 10.0


def _stop(number: int, frame: object) -> NoReturn:
    # Only the first signal counts: another would break into what the first one cleans up.
    for other in STOPS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def raise_on_signals() -> None:
    """Have SIGINT, SIGTERM and SIGHUP unwind the command, as they do from its start."""
    install_signal_handlers(_stop)


def say(text: str, *, quiet: bool = False) -> None:
    """One line for people, on stderr, without markup."""
    if not quiet:
        console.print(Text(text), soft_wrap=True)


def fail(sentence: str, code: int) -> NoReturn:
    """Say what is wrong and leave with `code`."""
    say(f"Error: {sentence}")
    sys.exit(code)


def command(function: Callable[P, T]) -> Callable[P, T]:
    """Wrap a click callback: every foreseeable failure becomes one sentence on stderr and its exit code.

    0 done, 1 internal error (with a traceback), 4 input refused, 5 output cannot be written, 6 resources missing,
    130 interrupted, 141 nobody reads stdout or stderr any more, 143 terminated; click itself leaves with 2 on wrong
    usage.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        raise_on_signals()
        try:
            return function(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, click.Abort, SystemExit, GeneratorExit):
            raise
        except BrokenPipeError:
            sys.exit(141)
        except BaseException as error:  # noqa: BLE001 - the border: nothing passes it as a bare traceback
            sentence, code = describe_error(error)
            if code == DEFECT:
                traceback.print_exc()
            fail(sentence, code)

    return wrapped


@contextmanager
def progress(title: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, a line every 10 s elsewhere; hands out `advance(n)`, n: how many more are done."""
    if quiet:
        yield lambda n: None
        return
    if not console.is_terminal:
        yield _Lines(title, total).advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _PerSecond(title),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)


class _PerSecond(ProgressColumn):
    """How many a second, lately."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._title}/s")


class _Lines:
    """Progress as plain lines, for a log."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._done = self._said_done = 0
        self._said_at = time.monotonic()

    def advance(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._said_at < LINE_SECONDS or self._done >= self._total:
            return
        rate = (self._done - self._said_done) / (now - self._said_at)
        left = f", {timedelta(seconds=round((self._total - self._done) / rate))} left" if rate > 0 else ""
        say(f"  {self._done:,} of {self._total:,} {self._title}, {rate:,.1f}/s{left}")
        self._said_done, self._said_at = self._done, now


def table(rows: Iterable[tuple[str, Any]], *, quiet: bool = False) -> None:
    """A summary: names in one column, what belongs to them in the other."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        say(f"  {name:<{width}}  {value}", quiet=quiet)


class Finite(click.FloatRange):
    """A number within a range; `nan` and `inf`, which click's own range lets pass, are wrong usage."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text → a finite number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Numbers(click.ParamType[list[float]]):
    """Three comma-separated numbers."""

    name = "a,b,c"

    def __init__(self, kind: type[int | float], lowest: float = -math.inf, highest: float = math.inf) -> None:
        self.kind, self.lowest, self.highest = kind, lowest, highest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text → list of three numbers; anything else is wrong usage."""
        try:
            found = [self.kind(part) for part in str(value).split(",")]
        except ValueError:
            found = []
        if len(found) != 3 or not all(self.lowest <= n <= self.highest and math.isfinite(n) for n in found):
            bounds = "" if math.isinf(self.highest) else f" from {self.lowest:g} to {self.highest:g}"
            self.fail(f"{value!r} is not three numbers{bounds} with commas between", param, ctx)
        return found


class Bytes(click.ParamType[int]):
    """An amount of memory: 4GB, 512MiB, 1.5G; decimal units unless they end in iB."""

    name = "size"
    _UNITS: ClassVar[dict[str, int]] = {
        **{f"{letter}{end}": 1000 ** (i + 1) for i, letter in enumerate("KMGT") for end in ("", "B")},
        **{f"{letter}iB": 1024 ** (i + 1) for i, letter in enumerate("KMGT")},
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text → bytes; anything else, and nothing at all, is wrong usage."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", str(value).strip())
        units = {unit.lower(): size for unit, size in self._UNITS.items()}
        if match is None or match[2].lower() not in units or not float(match[1]):
            self.fail(f"{value!r} is not an amount of memory such as 4GB or 512MiB", param, ctx)
        return int(float(match[1]) * units[match[2].lower()])


def check_json(
    path: Path | None,
    *,
    overwrite: bool,
    inputs: Iterable[Path | None] = (),
    outputs: Iterable[Path | None] = (),
) -> None:
    """Refuse a `--json` path before any work, as `check_writable` and `check_apart` do; None and `-` are right."""
    if path is not None and str(path) != "-":
        check_writable(path, overwrite=overwrite)
        check_apart((path, *outputs), inputs)


def publish_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object to `path`, whole, or to stdout where `path` is `-`; raises OutputError."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if str(path) == "-":
        click.echo(text, nl=False)
    else:
        write_whole(path, text.encode())
