"""Figure of a server's latency against its throughput."""

from __future__ import annotations

from typing import Any

from mclst.runtime.report.figures.chart import add_legend, new_chart
from mclst.runtime.report.figures.colors import INK
from mclst.runtime.report.figures.style import PALETTE, figure_bytes

COLORS = {"p50": PALETTE["blue"], "p90": PALETTE["orange"], "p99": PALETTE["vermillion"]}


def load_png(document: dict[str, Any]) -> bytes:
    """PNG: latency percentiles against tiles per second, a point for each number of clients."""
    server = document["server"]
    facts = f"{server['program']} by {server['protocol']}; numbers: clients at once"
    figure, (axes,) = new_chart("A server under load", facts, 4.6)
    for level, color in COLORS.items():
        points = [
            (
                result["tiles_per_s"],
                1e3 * result["latency_s"]["percentiles"][level]["s"],
                result["concurrency"],
            )
            for result in document["results"]
            if level in result["latency_s"]["percentiles"]
        ]
        if not points:
            continue
        rate, ms, _ = zip(*points, strict=True)
        axes.plot(rate, ms, "o-", color=color, label=level, markersize=4)
        if level == "p50":
            for x, y, count in points:
                axes.annotate(
                    f"{count}",
                    (x, y),
                    (0, -11),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                    color=INK,
                )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tiles per second, all clients together")
    axes.set_ylabel("ms until answered")
    add_legend(figure, *axes.get_legend_handles_labels(), columns=len(COLORS))
    return figure_bytes(figure)
