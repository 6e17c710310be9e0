"""A picture of end-to-end runs: where the time of each way goes, and how many tiles a second come of it."""

from __future__ import annotations

from typing import Any

from mclst.benchmarks.harness.stages import NAMES
from mclst.runtime.report.figures.style import OURS, PALETTE, THEIRS, open_frame
from mclst.runtime.report.figures.style import content as file_of

COLORMAP = dict(
    zip(
        NAMES,
        (PALETTE[name] for name in ("grey", "sky", "orange", "blue", "green", "yellow", "purple")),
        strict=True,
    )
)


def stages_png(content: dict[str, Any]) -> bytes:
    """PNG of a document of `mclst-bench end-to-end`: busy seconds stage by stage as a waterfall, and tiles a second."""
    from matplotlib.figure import Figure

    entries = content["result"]["contenders"]
    figure = Figure(figsize=(11, 1.6 + 1.15 * len(entries)), layout="constrained", dpi=130)
    falls, rates = figure.subplots(1, 2, width_ratios=(2, 1))
    for place, entry in enumerate(reversed(entries)):
        at = 0.0
        for name in NAMES:
            stage = entry["stages"]["stages"][name]
            if stage is not None:
                falls.barh(place, stage["busy_s"], left=at, color=COLORMAP[name], height=0.55)
                at += stage["busy_s"]
        falls.plot(
            [entry["wall_s"]["median"]] * 2, [place - 0.42, place + 0.42], color="black", linewidth=1.5
        )
        rate = entry["tiles_per_s"]
        rates.barh(
            place,
            rate["median"],
            xerr=[[rate["median"] - rate["median_low95"]], [rate["median_high95"] - rate["median"]]],
            color=OURS if entry["ours"] else THEIRS,
            height=0.55,
        )
        rates.annotate(f"  {rate['median']:.1f}", (rate["median_high95"], place), va="center", fontsize=9)
    labels = [entry["name"] for entry in reversed(entries)]
    for panel in (falls, rates):
        panel.set_yticks(range(len(labels)), labels if panel is falls else [""] * len(labels))
        open_frame(panel)
    used = [n for n in NAMES if any(entry["stages"]["stages"][n] for entry in entries)]
    handles = [falls.barh(0, 0, color=COLORMAP[name])[0] for name in used]
    figure.legend(handles, used, ncols=len(used), loc="outside lower center", frameon=False, fontsize=9)
    falls.set_xlabel("busy seconds, stages one after another (line: wall time)")
    rates.set_xlabel("tiles per second, slide to map")
    rates.set_xlim(right=1.2 * max(entry["tiles_per_s"]["median_high95"] for entry in entries))
    where = content["machine"]
    figure.suptitle(
        f"{content['result']['tiles']:,} tiles of {content['slide']['name']} on {where['cpu']}, {where['cores']} cores, "
        f"machine {content['verdict']}",
        fontsize=10,
    )
    return file_of(figure)
