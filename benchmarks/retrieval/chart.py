"""Figure of retrieval results: a panel per case, a bar per contender."""

from __future__ import annotations

from typing import Any

import numpy as np

from mclst.runtime.report.figures.style import OURS, THEIRS, figure_bytes


def retrieval_png(results: list[dict[str, Any]], title: str) -> bytes:
    """PNG of results of `measure`: seconds by contender, with the roofline."""
    from matplotlib.figure import Figure

    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.1 * rows + 0.5), layout="constrained", dpi=130)
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for panel, result in zip(panels, results, strict=False):
        _bars(panel, result)
    for panel in panels[len(results) :]:
        panel.set_visible(False)
    figure.suptitle(title)
    return figure_bytes(figure)


def _bars(panel: Any, result: dict[str, Any]) -> None:
    entries = sorted(result["contenders"], key=lambda entry: -entry["wall_s"]["median"])
    times = [entry["wall_s"]["median"] for entry in entries]
    panel.barh(
        [entry["name"] for entry in entries],
        times,
        color=[OURS if entry["ours"] else THEIRS for entry in entries],
    )
    for y, (entry, seconds) in enumerate(zip(entries, times, strict=True)):
        panel.annotate(
            f" {entry['wall_to_ours']:.1f}×", (seconds, y), va="center", fontsize=8, annotation_clip=False
        )
    panel.axvline(result["bound_s"]["host"], color="black", linewidth=0.8, linestyle=":")
    panel.set_xscale("log")
    panel.set_xlim(right=3 * max(times))
    panel.set_xlabel("seconds (dotted: float32 bound)", fontsize=8)
    panel.tick_params(labelsize=8)
    shape = result["shape"]
    panel.set_title(f"{result['case']}, {result['data']}, N = {shape['n']:,}", fontsize=9)
