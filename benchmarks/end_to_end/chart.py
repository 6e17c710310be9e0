"""Figure of end-to-end runs: time by stage, and tiles per second."""

from __future__ import annotations

from typing import Any

from mclst.benchmarks.harness.stages import NAMES
from mclst.runtime.report.figures.style import OURS, PALETTE, THEIRS, figure_bytes, hide_spines

STAGE_COLORS = dict(
    zip(
        NAMES,
        (PALETTE[name] for name in ("gray", "sky", "orange", "blue", "green", "yellow", "purple")),
        strict=True,
    )
)


def stages_png(document: dict[str, Any]) -> bytes:
    """PNG of an end-to-end document: busy seconds by stage as a waterfall, and tiles per second."""
    from matplotlib.figure import Figure

    entries = document["result"]["contenders"]
    figure = Figure(figsize=(11, 1.6 + 1.15 * len(entries)), layout="constrained", dpi=130)
    waterfall, rates = figure.subplots(1, 2, width_ratios=(2, 1))
    for y, entry in enumerate(reversed(entries)):
        left = 0.0
        for name in NAMES:
            stage = entry["stages"]["stages"][name]
            if stage is not None:
                waterfall.barh(y, stage["busy_s"], left=left, color=STAGE_COLORS[name], height=0.55)
                left += stage["busy_s"]
        waterfall.plot([entry["wall_s"]["median"]] * 2, [y - 0.42, y + 0.42], color="black", linewidth=1.5)
        rate = entry["tiles_per_s"]
        rates.barh(
            y,
            rate["median"],
            xerr=[[rate["median"] - rate["median_low95"]], [rate["median_high95"] - rate["median"]]],
            color=OURS if entry["ours"] else THEIRS,
            height=0.55,
        )
        rates.annotate(f"  {rate['median']:.1f}", (rate["median_high95"], y), va="center", fontsize=9)
    labels = [entry["name"] for entry in reversed(entries)]
    for panel in (waterfall, rates):
        panel.set_yticks(range(len(labels)), labels if panel is waterfall else [""] * len(labels))
        hide_spines(panel)
    used = [n for n in NAMES if any(entry["stages"]["stages"][n] for entry in entries)]
    handles = [waterfall.barh(0, 0, color=STAGE_COLORS[name])[0] for name in used]
    figure.legend(handles, used, ncols=len(used), loc="outside lower center", frameon=False, fontsize=9)
    waterfall.set_xlabel("busy seconds, stages one after another (line: wall time)")
    rates.set_xlabel("tiles per second, slide to map")
    rates.set_xlim(right=1.2 * max(entry["tiles_per_s"]["median_high95"] for entry in entries))
    machine = document["machine"]
    figure.suptitle(
        f"{document['result']['tiles']:,} tiles of {document['slide']['name']} on {machine['cpu']}, "
        f"{machine['cores']} cores, machine {document['verdict']}",
        fontsize=10,
    )
    return figure_bytes(figure)
