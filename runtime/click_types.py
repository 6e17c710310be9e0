"""What commands share: settings, how options are added, and types of values that click does not have."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click
from click.core import ParameterSource

Function = TypeVar("Function", bound=Callable[..., Any])

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "show_default": True}
"""Context settings of every command."""
PATH = click.Path(path_type=Path)
OUTPUTS = frozenset(
    {"out", "prefix", "json_path", "plot_path", "keep", "triton", "wsinfer", "work", "folder"}
)
"""Parameters whose path a command writes; it reads every other path that it is given."""
RECIPE_SUFFIXES = (".yaml", ".yml")
"""Of encoders that are given as a file in place of a name."""


def add_options(*options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Combine decorators; options appear in the help in this order."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def option_name(ctx: click.Context, name: str) -> str:
    """Return how a parameter is spelled on the command line."""
    return next(param.opts[0] for param in ctx.command.params if param.name == name)


def on_command_line(ctx: click.Context, name: str) -> bool:
    """Whether a parameter was given on the command line."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse_unowned(owner: str, *names: str) -> None:
    """Raise click.UsageError if a parameter was given that only `owner` uses, which was not."""
    ctx = click.get_current_context()
    for name in names:
        if on_command_line(ctx, name):
            raise click.UsageError(f"{option_name(ctx, name)} belongs to {owner}")


def given_inputs() -> list[Path]:
    """Paths that the running command was given to read: those of its parameters but OUTPUTS."""
    given = click.get_current_context().params
    texts = (value for name, value in given.items() if name not in OUTPUTS)
    values = (part for value in texts for part in (value if isinstance(value, list | tuple) else (value,)))
    return [
        Path(value)
        for value in values
        if isinstance(value, Path) or (isinstance(value, str) and value.lower().endswith(RECIPE_SUFFIXES))
    ]


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
            numbers = [self.kind(part) for part in str(value).split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != 3 or not all(
            self.lowest <= n <= self.highest and math.isfinite(n) for n in numbers
        ):
            bounds = "" if math.isinf(self.highest) else f" from {self.lowest:g} to {self.highest:g}"
            self.fail(f"{value!r} is not three numbers{bounds} with commas between", param, ctx)
        return numbers


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


class AliasedOption(click.Option):
    """An option that also accepts old spellings, which `--help` and messages do not show."""

    def __init__(self, *args: Any, aliases: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._aliases = list(aliases)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Register the shown names and the aliases."""
        shown = self.opts
        self.opts = [*shown, *self._aliases]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = shown
