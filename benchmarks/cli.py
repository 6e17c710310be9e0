"""`mclst-bench`: options → measurements → table, JSON, picture."""

from __future__ import annotations

from importlib.metadata import version

import click

from mclst.benchmarks.accuracy.command import accuracy
from mclst.benchmarks.encoder.command import latency
from mclst.benchmarks.end_to_end.command import end_to_end
from mclst.benchmarks.memory.command import memory
from mclst.benchmarks.page.viewing import viewing
from mclst.benchmarks.reading.measure import tiles
from mclst.benchmarks.reporting.compare_command import compare
from mclst.benchmarks.reporting.page_command import page
from mclst.benchmarks.retrieval.command import retrieval
from mclst.benchmarks.serving.command import load
from mclst.benchmarks.systems.precision import precision
from mclst.benchmarks.systems.systems import systems


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(version("mclst"), prog_name="mclst-bench")
def main() -> None:
    """Measure mclst on this machine, with its peers in the same run."""


for subcommand in (
    accuracy,
    compare,
    end_to_end,
    latency,
    load,
    memory,
    page,
    precision,
    retrieval,
    systems,
    tiles,
    viewing,
):
    main.add_command(subcommand)


if __name__ == "__main__":
    main()
