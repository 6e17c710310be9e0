"""Figure of end-to-end runs: time by stage, and tiles per second."""

from __future__ import annotations

from typing import Any

from mclst.benchmarks.harness.stages import NAMES
from mclst.runtime.report.figures.chart import add_legend, name_panel, new_chart
from mclst.runtime.report.figures.colors import INK
from mclst.runtime.report.figures.style import OURS, PALETTE, THEIRS, figure_bytes

STAGE_COLORS = dict(
    zip(
        NAMES,
        (PALETTE[name] for name in ("gray", "sky", "orange", "blue", "green", "yellow", "purple")),
        strict=True,
    )
)


def stages_png(document: dict[str, Any]) -> bytes:
    """PNG of an end-to-end document: busy seconds by stage as a waterfall, and tiles per second."""
    entries = list(reversed(document["result"]["contenders"]))
    machine = document["machine"]
    figure, (waterfall, rates) = new_chart(
        f"{document['slide']['name']}: from the slide to the map",
        f"{document['result']['tiles']:,} tiles  ·  {machine['cpu']}, {machine['cores']} cores  ·  "
        f"machine {document['verdict']}",
        1.2 + 0.72 * len(entries),
        (2, 1),
    )
    for y, entry in enumerate(entries):
        left = 0.0
        for name in NAMES:
            stage = entry["stages"]["stages"][name]
            if stage is not None:
                waterfall.barh(y, stage["busy_s"], left=left, color=STAGE_COLORS[name], height=0.55)
                left += stage["busy_s"]
        waterfall.plot([entry["wall_s"]["median"]] * 2, [y - 0.36, y + 0.36], color="black", linewidth=2)
        _draw_rate(rates, y, entry)
    labels = [entry["name"] for entry in entries]
    waterfall.set_yticks(range(len(labels)), labels, fontsize=11)
    rates.set_yticks(range(len(labels)), [""] * len(labels))
    rates.set_ylim(waterfall.get_ylim())
    name_panel(waterfall, "Seconds, line: wall time")
    waterfall.set_xlabel("busy seconds of each stage, one after another")
    name_panel(rates, "Tiles per second")
    rates.set_xlabel("line: 95 % interval of the median")
    rates.set_xlim(right=1.2 * max(entry["tiles_per_s"]["median_high95"] for entry in entries))
    used = [name for name in NAMES if any(entry["stages"]["stages"][name] for entry in entries)]
    handles = [waterfall.barh(0, 0, color=STAGE_COLORS[name])[0] for name in used]
    add_legend(figure, handles, used, len(used))
    return figure_bytes(figure)


def _draw_rate(panel: Any, y: int, entry: dict[str, Any]) -> None:
    rate = entry["tiles_per_s"]
    reach = [[rate["median"] - rate["median_low95"]], [rate["median_high95"] - rate["median"]]]
    panel.barh(y, rate["median"], xerr=reach, color=OURS if entry["ours"] else THEIRS, height=0.55)
    panel.annotate(f"  {rate['median']:.1f}", (rate["median_high95"], y), va="center", fontsize=10, color=INK)
