"""Figure of retrieval results: a panel per case, a bar per contender."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from mclst.runtime.report.figures.chart import name_panel, new_chart
from mclst.runtime.report.figures.colors import INK
from mclst.runtime.report.figures.style import OURS, THEIRS, figure_bytes


def retrieval_png(results: list[dict[str, Any]], title: str) -> bytes:
    """PNG of results of `measure`: seconds by contender, with the roofline."""
    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    facts = "seconds; numbers: × ours; dotted: the bound of float32 arithmetic"
    figure, panels = new_chart(title, facts, 3.2, [1.0] * columns, rows)
    for panel, result in zip(panels, results, strict=False):
        _bars(panel, result)
    for panel in panels[len(results) :]:
        panel.set_visible(False)
    return figure_bytes(figure)


def _bars(panel: Axes, result: dict[str, Any]) -> None:
    entries = sorted(result["contenders"], key=lambda entry: -entry["wall_s"]["median"])
    times = [entry["wall_s"]["median"] for entry in entries]
    panel.barh(
        [entry["name"] for entry in entries],
        times,
        color=[OURS if entry["ours"] else THEIRS for entry in entries],
    )
    for y, (entry, seconds) in enumerate(zip(entries, times, strict=True)):
        panel.annotate(
            f" {entry['wall_to_ours']:.1f}×",
            (seconds, y),
            va="center",
            fontsize=9,
            color=INK,
            annotation_clip=False,
        )
    panel.axvline(result["bound_s"]["host"], color="black", linewidth=0.8, linestyle=":")
    panel.set_xscale("log")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlim(right=3 * max(times))
    name_panel(panel, f"{result['case']}, {result['data']}, N = {result['shape']['n']:,}")
