"""Figure of a server's latency against its throughput."""

from __future__ import annotations

from typing import Any

from mclst.runtime.report.figures.style import figure_bytes, hide_spines

COLORS = {"p50": "#1b6ca8", "p90": "#c98a2b", "p99": "#b04a3a"}


def load_png(document: dict[str, Any]) -> bytes:
    """PNG: latency percentiles against tiles per second, a point for each number of clients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
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
                    f"{count}", (x, y), (0, -11), textcoords="offset points", ha="center", fontsize=7
                )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tiles per second, all clients together (numbers: clients)")
    axes.set_ylabel("ms until answered")
    axes.set_title(f"{document['server']['program']} by {document['server']['protocol']}", fontsize=10)
    axes.legend(frameon=False)
    hide_spines(axes)
    return figure_bytes(figure)
