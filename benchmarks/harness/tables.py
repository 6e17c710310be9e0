"""Tables of measurements for people, whole where the output is no terminal; the line that says what they were taken on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from mclst.runtime.console import console, say

_QUIET = 0.5
"""A machine busier than this share of its cores when a run begins gives figures to look at, not to quote."""


def verdict(load: float | None, cores: int) -> str:
    """`quiet` or `busy`, by the load average at the start of a run."""
    return "quiet" if load is not None and load <= _QUIET * cores else "busy"


def stamp(content: dict[str, Any]) -> str:
    """One line of the machine, its measured peaks and its verdict."""
    peaks, where = content["peaks"]["host"], content["machine"]
    operations = peaks.get("operations_per_s") or {"fp32": peaks["flops_per_s"]}
    known = ", ".join(f"{rate / 1e9:,.0f} {name}" for name, rate in operations.items() if rate)
    return (
        f"{where['cpu']}, {where['cores']} cores ({where['lanes'] or 'nothing compiled'}), GPU: {where['gpu'] or 'none'}; "
        f"peaks {known} GFLOP/s, {peaks['bytes_per_s'] / 1e9:.0f} GB/s; "
        f"machine {content['verdict']} at the start (load {where['load_at_start']})"
    )


def show_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    bold: AbstractSet[str] = frozenset(),
) -> None:
    """Print a table whose first column names the rows; `bold`: of these, ours."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="right" if at else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="bold" if row[0] in bold else "")
    if console.is_terminal:
        console.print(table)
        return
    # rich never prints wider than it takes the console to be, and takes a file to be 80 columns.
    needed = Measurement.get(console, console.options.update(width=10_000), table).maximum
    Console(stderr=True, highlight=False, width=needed).print(table)


def show_memory(memory: Sequence[Mapping[str, Any]]) -> None:
    """A line per contender that was measured in a process of its own: resident memory at the peak, and what it added."""
    for entry in memory:
        if entry["peak_rss_bytes"] is None:
            say(f"memory of {entry['name']}: not measured ({entry['why']})")
        else:
            peak, before = (entry[name] / 2**20 for name in ("peak_rss_bytes", "before_bytes"))
            say(f"memory of {entry['name']}: {peak:,.0f} MiB at the peak, {peak - before:,.0f} of it its own")
