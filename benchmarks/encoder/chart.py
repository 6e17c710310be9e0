"""Figure of encoder measurements: latency and throughput against batch size, and the roofline."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from mclst.runtime.report.figures.chart import add_legend, name_panel, new_chart
from mclst.runtime.report.figures.colors import MUTED
from mclst.runtime.report.figures.style import PALETTE, figure_bytes

_COLORS = tuple(PALETTE[name] for name in ("blue", "vermillion", "green", "purple", "sky", "orange", "black"))
"""Repeated with another marker where there are more contenders."""
_MARKS = "osD^vP*X"


def latency_png(document: dict[str, Any]) -> bytes:
    """PNG of a document of `mclst-bench latency`."""
    machine, bundle = document["machine"], document["bundle"]
    gpu = f"  ·  {machine['gpu']}" if machine["gpu"] else ""
    figure, (times, rates, roof) = new_chart(
        f"{bundle['encoder']}: the encoder alone",
        f"tiles of {bundle['tile_px']} px  ·  {machine['cpu']}, {document['settings']['threads']} threads"
        f"{gpu}  ·  machine {document['verdict']}",
        4.9,
        (1, 1, 1),
    )
    names = list(dict.fromkeys(r["name"] for of_batch in document["batches"] for r in of_batch["results"]))
    style: dict[str, dict[str, Any]] = {
        name: {
            "color": _COLORS[i % len(_COLORS)],
            "marker": _MARKS[i % len(_MARKS)],
            "linewidth": 2.2 if name.startswith("mclst ") else 1.1,
        }
        for i, name in enumerate(names)
    }
    for name in names:
        results = [
            (of_batch["batch"], result)
            for of_batch in document["batches"]
            for result in of_batch["results"]
            if result["name"] == name
        ]
        x = [batch for batch, _ in results]
        median = [1e3 * r["latency_s"]["percentiles"]["p50"]["s"] for _, r in results]
        p90 = [1e3 * r["latency_s"]["percentiles"].get("p90", {"s": np.nan})["s"] for _, r in results]
        times.plot(x, median, **style[name])
        times.plot(x, p90, linestyle=":", color=style[name]["color"], linewidth=1)
        rates.plot(x, [r["tiles_per_s"] for _, r in results], **style[name])
    name_panel(times, "Milliseconds per query")
    times.set_xlabel("tiles per query; line: median, dotted: p90")
    times.set_yscale("log")
    name_panel(rates, "Tiles per second")
    rates.set_xlabel("tiles per query")
    rates.set_ylim(bottom=0)
    for panel in (times, rates):
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _roofline(roof, document, style)
    add_legend(figure, [Line2D([], [], **style[name]) for name in names], names, min(6, len(names)))
    return figure_bytes(figure)


def _roofline(panel: Any, document: dict[str, Any], style: dict[str, dict[str, Any]]) -> None:
    """Plot operations per second against operations per byte, with the measured peaks as the roof."""
    work = {(w["precision"], w["batch"]): w for w in document["work"]}
    intensity = []
    for of_batch in document["batches"]:
        for result in of_batch["results"]:
            counted = work.get((result["precision"], of_batch["batch"])) or work.get(
                ("fp32", of_batch["batch"])
            )
            if counted is None:
                continue
            x = counted["products"] / counted["least_bytes"]
            intensity.append(x)
            rate = counted["products"] / result["latency_s"]["mean"]
            line = style[result["name"]]
            panel.plot(x, rate / 1e9, color=line["color"], marker=line["marker"], linestyle="", markersize=5)
    if not intensity:
        panel.set_visible(False)
        return
    x = np.geomspace(min(intensity) / 3, 2 * max(intensity), 100)
    for side, peaks in document["peaks"].items():
        for precision, rate in (peaks["operations_per_s"] if peaks else {}).items():
            if rate:
                roof = np.minimum(rate, x * peaks["bytes_per_s"]) / 1e9
                panel.plot(x, roof, color=MUTED, linewidth=0.9, linestyle="--")
                name = f"{side} {precision}"
                panel.annotate(name, (x[-1], roof[-1]), fontsize=9, color=MUTED, ha="right", va="bottom")
    panel.set_xscale("log")
    panel.set_yscale("log")
    name_panel(panel, "GFLOP/s")
    panel.set_xlabel("operations per byte (dashed: measured peaks)")
