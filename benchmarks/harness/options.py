"""Options that the benchmark commands share, and where their results are written. Imports nothing slow."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mclst.runtime.atomic import write_atomically
from mclst.runtime.choices import PRECISIONS, PROVIDERS
from mclst.runtime.click_types import PATH, add_options
from mclst.runtime.console import check_outputs, publish_json
from mclst.runtime.errors import InputError


@dataclass(frozen=True)
class ResultFiles:
    """Paths of --json and --plot; None where absent."""

    json_path: Path | None
    plot_path: Path | None
    overwrite: bool

    def check(self, inputs: Sequence[Path | None] = (), others: Sequence[Path | None] = ()) -> None:
        """Refuse outputs before the work starts.

        Parameters
        ----------
        inputs : sequence of Path or None
            What the command reads besides `given_inputs`.
        others : sequence of Path or None
            Further files that the command writes.

        Raises
        ------
        OutputError
            If an output cannot be written or would replace an input.
        """
        outputs = (self.plot_path, *others)
        check_outputs(outputs, self.json_path, overwrite=self.overwrite, inputs=inputs)

    def publish(self, document: dict[str, Any], draw: Callable[[], bytes] | None = None) -> None:
        """Write the document, and the PNG that `draw` returns, where the user named a file; OutputError."""
        if self.json_path is not None:
            publish_json(self.json_path, document)
        if self.plot_path is not None and draw is not None:
            write_atomically(self.plot_path, draw())


def read_document(path: Path) -> dict[str, Any]:
    """Read what `ResultFiles.publish` wrote; InputError if it is no JSON object."""
    advice = "give a document of mclst-bench --json"
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); {advice}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no JSON object; {advice}")
    return document


def result_options(
    *, plot: str = "", json: str = "Write everything, raw samples included; - for stdout."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --json, --overwrite, --quiet and, with a help text in `plot`, --plot to a click callback.

    The callback receives `result_files` (a ResultFiles) and `quiet`.
    """
    options = [
        click.option("--json", "json_path", type=PATH, help=json),
        click.option("--overwrite", is_flag=True, help="Replace existing files."),
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
    ]
    if plot:
        options.insert(1, click.option("--plot", "plot_path", type=PATH, help=plot))

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(
            *, json_path: Path | None, overwrite: bool, plot_path: Path | None = None, **options: Any
        ) -> Any:
            return function(result_files=ResultFiles(json_path, plot_path, overwrite), **options)

        return add_options(*options)(wrapped)

    return add


def parse_numbers(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """Parse `1,2,8` into distinct positive numbers."""
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,2") from error
    if min(numbers) < 1:
        raise click.BadParameter("give numbers from 1")
    return list(dict.fromkeys(numbers))


def parse_settings(context: click.Context, parameter: click.Parameter, value: str) -> list[tuple[str, str]]:
    """Parse `cpu:fp32,openvino:bf16` into distinct (provider, precision) pairs."""
    settings = []
    for part in value.split(","):
        provider, _, precision = part.strip().partition(":")
        if not provider:
            raise click.BadParameter(f"{value!r} is not a list such as cpu:fp32,cpu:int8")
        for kind, name, names in (
            ("provider", provider, PROVIDERS),
            ("precision", precision or "fp32", PRECISIONS),
        ):
            if name not in names:
                raise click.BadParameter(f"there is no {kind} {name!r}; choose {', '.join(names)}")
        settings.append((provider, precision or "fp32"))
    return list(dict.fromkeys(settings))
