"""All commands and their parameters, as click has them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import click

from mclst.runtime.cli.bundle_options import BundleType
from mclst.runtime.cli.slide_argument import SlideArgument

MODULES = {
    "infer": "runtime.cli.infer",
    "report": "runtime.cli.report",
    "eval": "evaluation.cli",
    "fit": "training.fitting.cli",
    "train": "training.cli",
    "export": "export.cli",
    "bundle": "runtime.cli.bundle",
    "demo": "demo.cli",
    "bench": "benchmarks.cli",
}
TEXTS = {"--encoder": "uni", "--server": "http://localhost:1"}
"""Required options that are no paths."""
WITH = {
    "infer --spots": "other",
    "infer --bundle": "other --spots spots",
    "infer --region": "other --spots spots",
    "infer --tissue-mask": "other --grid 100",
    "infer --server-ca": "other --spots spots --server https://localhost:1",
    "infer slide": "--spots spots",
    "export --bundle": "--triton repository",
    "bench latency --slide": "--spots spots",
    "bench latency --spots": "--slide other",
    "bench leaderboard --bundle": "other",
    "bench leaderboard --data": "other --bundle b",
    "bench leaderboard --embeddings": "other",
    "bench leaderboard --genes": "other --bundle b",
    "bench leaderboard --predictions": "other",
    "bench leaderboard root": "--bundle b",
    "bench recipes --slide": "--two-blocks",
}
"""What a parameter goes with, where the command's required ones do not do."""


def command_of(name: str) -> click.Command:
    command: click.Command = import_module(f"mclst.{MODULES[name.split()[0]]}").main
    for part in name.split()[1:]:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), part) or command
    return command


def spelled(parameter: click.Parameter) -> str:
    return parameter.opts[0]


def commands() -> Iterator[str]:
    for name in MODULES:
        command = command_of(name)
        if not isinstance(command, click.Group):
            yield name
            continue
        for part in command.list_commands(click.Context(command)):
            yield f"{name} {part}"


def is_path(parameter: click.Parameter) -> bool:
    return isinstance(parameter.type, click.Path | SlideArgument | BundleType)


def others(which: str, name: str, but: str) -> list[str]:
    """What goes with the parameter `but`."""
    if which in WITH:
        return WITH[which].split()
    words = ["--ckpt", "other"] if name == "export" and but != "--ckpt" else []
    for parameter in command_of(name).params:
        option = spelled(parameter)
        if parameter.required and option != but:
            value = TEXTS.get(option, "other")
            words += [option, value] if option.startswith("-") else [value]
    return words
