"""Where a command meets its user: sentences on stderr, exit codes, progress."""

from __future__ import annotations

import functools
import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

from mclst.runtime.atomic import check_distinct, check_writable, write_atomically
from mclst.runtime.click_types import given_inputs
from mclst.runtime.entry_points import (
    exit_now,
    install_signal_handlers,
    restore_signal_handlers,
    signal_handlers,
)
from mclst.runtime.errors import DEFECT, Terminated, describe_error

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
T = TypeVar("T")

LINE_SECONDS = 10.0
EXIT_CODES = (
    "Exit codes: 0 done, 1 defect, 2 wrong usage, 3 some slides failed, 4 input refused, 5 output cannot be "
    "written, 6 memory, provider or package missing, 130 and 143 stopped."
)
CLEANUP_SECONDS = 5.0
"""How long a stopped command cleans up undisturbed: another signal within that time is ignored."""
RETRY_SECONDS = 0.01
"""How often a stop that is held back looks whether it may be raised."""
COMMAND = "command.<locals>.wrapped"
"""The function in which a command is called."""
CALLED_BY_HDF5 = "mclst.runtime.expression_map.h5ad_layout"
"""The module whose methods HDF5 calls."""


@functools.cache
def stderr_console() -> Console:
    """Rich's console on stderr; stdout carries data alone."""
    # Imported here: rich takes longer to load than `--help` may take.
    from rich.console import Console

    return Console(stderr=True, highlight=False)


class StopHandler:
    """Raise at the first signal and at the second; end the process at the third.

    Nothing is raised amid an import or a call of HDF5's, but as soon as that is left; nor is it lost where
    Python swallows it.
    """

    def __init__(self) -> None:
        self._count = 0
        self._stopped_at = -math.inf
        self._held: int | None = None
        self._ended = False
        self._handlers_before: dict[int, Any] = {}
        self._unraisable_before = sys.unraisablehook

    def install(self) -> None:
        """Take over SIGINT, SIGTERM and SIGHUP, until `end`."""
        self._handlers_before = signal_handlers()
        sys.unraisablehook = self._raise_again
        install_signal_handlers(self)

    def end(self) -> BaseException | None:
        """Raise no more: the command has ended. Returns what is still held back. May be called again."""
        self._ended = True
        held = self._release()
        sys.unraisablehook = self._unraisable_before
        # Of the signals that follow one, those within CLEANUP_SECONDS still do not count.
        if not self._count:
            restore_signal_handlers(self._handlers_before)
        return None if held is None else _stop_of(held)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if now - self._stopped_at < CLEANUP_SECONDS:
            return
        self._stopped_at = now
        self._count += 1
        # A command may be stuck as it cleans up.
        if self._ended or self._count > 2:
            exit_now(number, frame)
        self._raise(number, frame)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if _must_not_break(frame):
            self._hold(number)
            return
        self._release()
        raise _stop_of(number)

    def _hold(self, number: int) -> None:
        self._held = number
        signal.signal(signal.SIGALRM, self._raise_held)
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS, RETRY_SECONDS)

    def _release(self) -> int | None:
        held, self._held = self._held, None
        if held is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return held

    def _raise_held(self, number: int, frame: FrameType | None) -> None:
        if self._held is not None:
            self._raise(self._held, frame)

    def _raise_again(self, ignored: sys.UnraisableHookArgs) -> None:
        """Hold back a stop that Python has swallowed, as in a `__del__` or the callback of a C library."""
        if isinstance(ignored.exc_value, KeyboardInterrupt):
            self._hold(signal.SIGINT)
        elif isinstance(ignored.exc_value, Terminated):
            self._hold(signal.SIGTERM)
        else:
            self._unraisable_before(ignored)


def _stop_of(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def _must_not_break(frame: FrameType | None) -> bool:
    """Whether the main thread is in an import, whose global lock would stay held, so that no other thread
    could import; in HDF5, which turns an exception in its callbacks into errors of its own; or where a
    command ends.
    """
    if frame is not None and frame.f_code.co_qualname in (COMMAND, "StopHandler.end"):
        return True
    while frame is not None and frame.f_code.co_qualname != COMMAND:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        if frame.f_globals.get("__name__") == CALLED_BY_HDF5:
            return True
        frame = frame.f_back
    return False


def on_terminal() -> bool:
    """Whether stderr is a terminal; elsewhere rich is not needed, which takes a tenth of a second to load."""
    return sys.stderr.isatty()


def escape_controls(text: str) -> str:
    r"""Write what is not printable as escapes such as `\x1b`, as files and servers may send terminal
    sequences.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str, *, quiet: bool = False, style: str | None = None) -> None:
    """Print one line on stderr, without markup or control characters; style: such as "bold red"."""
    if quiet:
        return
    if on_terminal():
        stderr_console().print(escape_controls(text), markup=False, emoji=False, soft_wrap=True, style=style)
    else:
        click.echo(escape_controls(text), err=True)


def fail(sentence: str, code: int) -> NoReturn:
    """Print an error and exit with `code`."""
    say(f"Error: {sentence}")
    sys.exit(code)


def command(function: Callable[P, T]) -> Callable[P, T]:
    """Wrap a click callback: each expected failure becomes one sentence on stderr and an exit code.

    0 done, 1 internal error (with a traceback), 4 input refused, 5 output cannot be written, 6 resources
    missing, 130 interrupted, 141 broken pipe, 143 terminated. click itself exits with 2 on wrong usage.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        stops = StopHandler()
        try:
            stops.install()
            return function(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, click.Abort, SystemExit, GeneratorExit):
            raise
        except BrokenPipeError:
            sys.exit(141)
        except BaseException as error:  # noqa: BLE001 - no bare traceback reaches the user
            # A command that was told to stop, and failed before it could, is stopped.
            sentence, code = describe_error(stops.end() or error)
            if code == DEFECT:
                for line in traceback.format_exc().splitlines():
                    say(line)
            fail(sentence, code)
        finally:
            stops.end()

    # click shows the docstring as the command's help.
    wrapped.__doc__ = f"{wrapped.__doc__}\n\n    {EXIT_CODES}"
    return wrapped


@contextmanager
def progress(title: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show progress: a bar on a terminal, a line every 10 s elsewhere.

    Yields `advance(n)`, to be called with the number of items just done.
    """
    if quiet:
        yield lambda n: None
        return
    if not on_terminal():
        yield _ProgressLines(title, total).advance
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=stderr_console(), transient=True) as bar:
        task = bar.add_task(title, total=total, rate="")

        def advance(n: int) -> None:
            bar.advance(task, n)
            speed = bar.tasks[task].finished_speed or bar.tasks[task].speed
            bar.update(task, rate="" if speed is None else f"{speed:,.0f} {title}/s")

        yield advance


class _ProgressLines:
    """Progress as plain lines, for a log."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._done = self._reported = 0
        self._reported_at = time.monotonic()

    def advance(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._reported_at < LINE_SECONDS or self._done >= self._total:
            return
        rate = (self._done - self._reported) / (now - self._reported_at)
        left = f", {timedelta(seconds=round((self._total - self._done) / rate))} left" if rate > 0 else ""
        say(f"  {self._done:,} of {self._total:,} {self._title}, {rate:,.1f}/s{left}")
        self._reported, self._reported_at = self._done, now


def table(rows: Iterable[tuple[str, Any]], *, quiet: bool = False) -> None:
    """Print a summary in two columns: names and values."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        say(f"  {name:<{width}}  {value}", quiet=quiet)


def check_outputs(
    files: Iterable[Path | None],
    json_path: Path | None,
    *,
    overwrite: bool,
    inputs: Iterable[Path | None] = (),
) -> None:
    """Refuse what a command would write, files and `--json`, before any work.

    Parameters
    ----------
    files : iterable of Path or None
        Plain files; None is skipped.
    json_path : Path, optional
        See `check_json`.
    overwrite : bool
        Whether they may exist.
    inputs : iterable of Path or None
        What the command reads besides `given_inputs`.

    Raises
    ------
    OutputError
        As `check_writable` and `check_distinct` do.
    """
    outputs, sources = [*files], [*given_inputs(), *inputs]
    for path in filter(None, outputs):
        check_writable(path, overwrite=overwrite)
    check_distinct(outputs, sources)
    check_json(json_path, overwrite=overwrite, inputs=sources, outputs=outputs)


def check_json(
    path: Path | None,
    *,
    overwrite: bool,
    inputs: Iterable[Path | None] = (),
    outputs: Iterable[Path | None] = (),
) -> None:
    """Refuse a `--json` path before any work, as `check_writable` and `check_distinct` do; None and `-` are
    right.
    """
    if path is not None and str(path) != "-":
        check_writable(path, overwrite=overwrite, option="--json")
        check_distinct((path, *outputs), inputs)


def publish_result(json_path: Path | None, content: Callable[[], dict[str, Any]], *paths: Path) -> None:
    """End a command: write its --json, and print the paths it wrote, unless JSON is on stdout."""
    if json_path is not None:
        publish_json(json_path, content())
    if json_path is None or str(json_path) != "-":
        for path in paths:
            click.echo(str(path))


def publish_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object to `path`, or to stdout if `path` is `-`; raises OutputError."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if str(path) == "-":
        click.echo(text, nl=False)
    else:
        write_atomically(path, text.encode())
