"""A picture of a retrieval measurement: one panel a case, one bar a contender, times on a common scale of ratios."""

from __future__ import annotations

from typing import Any

import numpy as np

from mclst.runtime.report.figures.style import OURS, THEIRS, content


def retrieval_png(results: list[dict[str, Any]], title: str) -> bytes:
    """PNG of the results of `retrieval.measure`: seconds by contender, the bound as a line."""
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
    return content(figure)


def _bars(panel: Any, result: dict[str, Any]) -> None:
    entries = sorted(result["contenders"], key=lambda entry: -entry["wall_s"]["median"])
    times = [entry["wall_s"]["median"] for entry in entries]
    panel.barh(
        [entry["name"] for entry in entries],
        times,
        color=[OURS if entry["ours"] else THEIRS for entry in entries],
    )
    for place, (entry, seconds) in enumerate(zip(entries, times, strict=True)):
        panel.annotate(
            f" {entry['wall_to_ours']:.1f}×", (seconds, place), va="center", fontsize=8, annotation_clip=False
        )
    panel.axvline(result["bound_s"]["host"], color="black", linewidth=0.8, linestyle=":")
    panel.set_xscale("log")
    panel.set_xlim(right=3 * max(times))
    panel.set_xlabel("seconds (dotted: float32 bound)", fontsize=8)
    panel.tick_params(labelsize=8)
    shape = result["shape"]
    panel.set_title(f"{result['case']}, {result['data']}, N = {shape['n']:,}", fontsize=9)
