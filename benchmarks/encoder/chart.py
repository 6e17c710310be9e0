"""A picture of encoder measurements: latency against batch, throughput against batch, and the roofline."""

from __future__ import annotations

from typing import Any

import numpy as np

from mclst.runtime.report.figures.style import PALETTE, open_frame
from mclst.runtime.report.figures.style import content as file_of

_COLOURS = tuple(
    PALETTE[name] for name in ("blue", "vermillion", "green", "purple", "sky", "orange", "black")
)
"""More contenders than these repeat them with another mark."""
_MARKS = "osD^vP*X"


def latency_png(content: dict[str, Any]) -> bytes:
    """PNG of a document of `mclst-bench latency`."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["name"] for of_batch in content["batches"] for r in of_batch["results"]))
    style = {
        name: {
            "color": _COLOURS[at % len(_COLOURS)],
            "marker": _MARKS[at % len(_MARKS)],
            "linewidth": 2.2 if name.startswith("mclst ") else 1.1,
        }
        for at, name in enumerate(names)
    }
    figure = Figure(figsize=(15, 5), layout="constrained", dpi=120)
    times, rates, roof = figure.subplots(1, 3)
    for name in names:
        held = [
            (of_batch["batch"], result)
            for of_batch in content["batches"]
            for result in of_batch["results"]
            if result["name"] == name
        ]
        x = [batch for batch, _ in held]
        middle = [1e3 * r["latency_s"]["percentiles"]["p50"]["s"] for _, r in held]
        high = [1e3 * r["latency_s"]["percentiles"].get("p90", {"s": np.nan})["s"] for _, r in held]
        times.plot(x, middle, label=name, **style[name])
        times.plot(x, high, linestyle=":", color=style[name]["color"], linewidth=1)
        rates.plot(x, [r["tiles_per_s"] for _, r in held], **style[name])
    _axes(times, "ms per query: median, dotted p90", log=True)
    _axes(rates, "tiles per second", log=False)
    rates.set_ylim(bottom=0)
    _roofline(roof, content, style)
    figure.legend(loc="outside lower center", ncols=min(5, len(names)), frameon=False, fontsize=8)
    where, bundle = content["machine"], content["bundle"]
    figure.suptitle(
        f"{bundle['encoder']}, {bundle['tile_px']} px, on {where['cpu']}, {content['settings']['threads']} threads"
        f"{'' if not where['gpu'] else ', ' + where['gpu']}; machine {content['verdict']}",
        fontsize=10,
    )
    return file_of(figure)


def _axes(panel: Any, title: str, *, log: bool) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if log:
        panel.set_yscale("log")
    panel.set_xlabel("tiles per query")
    panel.set_title(title, fontsize=10)
    open_frame(panel)


def _roofline(panel: Any, content: dict[str, Any], style: dict[str, dict[str, Any]]) -> None:
    """Operations a second against operations a byte (weights, tiles and results once): measured, and the roof above."""
    work = {(w["precision"], w["batch"]): w for w in content["work"]}
    intensity = []
    for of_batch in content["batches"]:
        for result in of_batch["results"]:
            counted = work.get((result["precision"], of_batch["batch"])) or work.get(
                ("fp32", of_batch["batch"])
            )
            if counted is None:
                continue
            x = counted["products"] / counted["least_bytes"]
            intensity.append(x)
            rate = counted["products"] / result["latency_s"]["mean"]
            look = style[result["name"]]
            panel.plot(x, rate / 1e9, color=look["color"], marker=look["marker"], linestyle="", markersize=5)
    if not intensity:
        panel.set_visible(False)
        return
    x = np.geomspace(min(intensity) / 3, 2 * max(intensity), 100)
    for side, peaks in content["peaks"].items():
        for precision, rate in (peaks["operations_per_s"] if peaks else {}).items():
            if rate:
                roof = np.minimum(rate, x * peaks["bytes_per_s"]) / 1e9
                panel.plot(x, roof, color="#777777", linewidth=0.9, linestyle="--")
                panel.annotate(f"{side} {precision}", (x[-1], roof[-1]), fontsize=7, ha="right", va="bottom")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("operations per byte")
    panel.set_title("GFLOP/s; dashed: peaks measured in the same run", fontsize=10)
    open_frame(panel)
