"""Where a benchmark's result goes: JSON and picture, refused before the work and written after it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mclst.runtime.atomic import check_apart, check_writable, write_whole
from mclst.runtime.console import check_json, publish_json

PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class ResultFiles:
    """The paths given by --json and --plot; None where not given."""

    json_path: Path | None
    plot_path: Path | None
    overwrite: bool

    def check(self, inputs: Sequence[Path | None] = (), others: Sequence[Path | None] = ()) -> None:
        """Refuse what cannot be written, or is among `inputs`; others: files the command writes itself. OutputError."""
        given = (self.plot_path, *others)
        for path in given:
            if path is not None:
                check_writable(path, overwrite=self.overwrite)
        check_apart(given, inputs)
        check_json(self.json_path, overwrite=self.overwrite, inputs=inputs, outputs=given)

    def publish(self, content: Callable[[], dict[str, Any]], png: Callable[[], bytes] | None = None) -> None:
        """Write what was asked for, each whole; what was not is not made. Raises OutputError."""
        if self.json_path is not None:
            publish_json(self.json_path, content())
        if self.plot_path is not None and png is not None:
            write_whole(self.plot_path, png())


def result_options(
    *, plot: str = "", json: str = "Write everything, raw samples included; - for stdout."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a click callback --json, --plot (where `plot` says what it draws), --overwrite and --quiet.

    It is handed the first three as `result_files`, a ResultFiles, and the last as `quiet`.
    """
    options = [
        click.option("--json", "json_path", type=PATH, help=json),
        click.option("--overwrite", is_flag=True, help="Replace files of those names."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
    ]
    if plot:
        options.insert(1, click.option("--plot", "plot_path", type=PATH, help=plot))

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(
            *, json_path: Path | None, overwrite: bool, plot_path: Path | None = None, **given: Any
        ) -> Any:
            return function(result_files=ResultFiles(json_path, plot_path, overwrite), **given)

        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return add


def whole_numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Text as 1,2,8 → the numbers, each once."""
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,2") from error
    if min(numbers) < 1:
        raise click.BadParameter("give numbers from 1")
    return list(dict.fromkeys(numbers))
