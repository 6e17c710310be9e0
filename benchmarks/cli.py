"""`mclst-bench`: one command per benchmark, imported when it is invoked."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

import click

from mclst.runtime.click_types import SETTINGS
from mclst.runtime.console import EXIT_CODES

COMMANDS = {
    "accuracy": ("accuracy.command", "accuracy", "Cross-validation of a training run."),
    "command": ("whole_command.command", "whole_command", "The whole command, as typed."),
    "compare": ("reporting.commands", "compare", "Two result files against each other."),
    "end-to-end": ("end_to_end.command", "end_to_end", "Whole runs, from slide to map."),
    "latency": ("encoder.command", "latency", "The encoder: latency, throughput, energy, roofline."),
    "leaderboard": (
        "leaderboard.command",
        "leaderboard",
        "HEST-bench and STP-Bench: their row for an encoder.",
    ),
    "load": ("serving.command", "load", "A model server under load."),
    "memory": ("memory.command", "memory", "Peak memory of dense maps."),
    "nulls": ("nulls.command", "nulls", "Errors of mclst-eval where there is nothing to find."),
    "page": ("reporting.commands", "page", "HTML page of result files."),
    "precision": ("systems.commands", "precision", "A bundle's reduced precisions against fp32."),
    "recipes": ("recipes.command", "recipes", "Encoders at full size: export, memory, parity, tiles/s."),
    "retrieval": ("retrieval.command", "retrieval", "Retrieval: embeddings to expression."),
    "robustness": ("robustness.command", "robustness", "Expression under other stain, scanner and scale."),
    "scale": ("scale.command", "scale", "A million cells as spots; millions of bins pooled."),
    "systems": ("systems.commands", "systems", "The six systems, from tiles to expression."),
    "tiles": ("reading.command", "tiles", "Slide readers: tiles per second."),
    "trust": ("trust.command", "trust", "What maps say of their errors, against the truth."),
    "viewing": ("page.viewing", "viewing", "The page of a large map in a browser."),
}
"""Module below `mclst.benchmarks`, attribute, and one line of help, by subcommand."""


class LazyGroup(click.Group):
    """A group that imports a subcommand's module only when that subcommand is invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"mclst.benchmarks.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings=SETTINGS, epilog=EXIT_CODES)
@click.version_option(version("mclst"), prog_name="mclst-bench")
def main() -> None:
    """Measure mclst on this machine, with its peers in the same run."""


if __name__ == "__main__":
    main()
