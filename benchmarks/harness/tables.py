"""Tables and lines that benchmark commands print on stderr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from mclst.runtime.console import say, stderr_console


def machine_line(document: dict[str, Any]) -> str:
    """One line of the machine, its measured peaks and whether it was quiet."""
    peaks, machine = document["peaks"]["host"], document["machine"]
    operations = peaks.get("operations_per_s") or {"fp32": peaks["flops_per_s"]}
    rates = ", ".join(f"{rate / 1e9:,.0f} {name}" for name, rate in operations.items() if rate)
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({machine['lanes'] or 'nothing compiled'}), "
        f"GPU: {machine['gpu'] or 'none'}; "
        f"peaks {rates} GFLOP/s, {peaks['bytes_per_s'] / 1e9:.0f} GB/s; "
        f"machine {document['verdict']} at the start (load {machine['load_at_start']})"
    )


def show_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    bold: AbstractSet[str] = frozenset(),
) -> None:
    """Print a table whose first column names the rows; `bold`: names of rows to emphasize."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="bold" if row[0] in bold else "")
    console = stderr_console()
    if not console.is_terminal:
        # rich assumes 80 columns for a file and never prints wider: give its console the table's width.
        width = Measurement.get(console, console.options.update(width=10_000), table).maximum
        console = Console(stderr=True, highlight=False, width=width)
    console.print(table)


def show_memory(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print the peak memory of each contender that ran in a process of its own."""
    for entry in entries:
        if entry["peak_rss_bytes"] is None:
            say(f"memory of {entry['name']}: not measured ({entry['why']})")
        else:
            peak, before = (entry[name] / 2**20 for name in ("peak_rss_bytes", "before_bytes"))
            say(f"memory of {entry['name']}: {peak:,.0f} MiB at the peak, {peak - before:,.0f} of it its own")


def show_unavailable(entries: Sequence[Mapping[str, Any]]) -> None:
    """Print why each missing contender did not run."""
    for entry in entries:
        say(f"not run here: {entry['name']} ({entry['why']})")
