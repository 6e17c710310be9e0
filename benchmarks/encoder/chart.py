"""Figure of encoder measurements: latency and throughput against batch size, and the roofline."""

from __future__ import annotations

from typing import Any

import numpy as np

from mclst.runtime.report.figures.style import PALETTE, figure_bytes, hide_spines

_COLORS = tuple(PALETTE[name] for name in ("blue", "vermillion", "green", "purple", "sky", "orange", "black"))
"""Repeated with another marker where there are more contenders."""
_MARKS = "osD^vP*X"


def latency_png(document: dict[str, Any]) -> bytes:
    """PNG of a document of `mclst-bench latency`."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["name"] for of_batch in document["batches"] for r in of_batch["results"]))
    style = {
        name: {
            "color": _COLORS[i % len(_COLORS)],
            "marker": _MARKS[i % len(_MARKS)],
            "linewidth": 2.2 if name.startswith("mclst ") else 1.1,
        }
        for i, name in enumerate(names)
    }
    figure = Figure(figsize=(15, 5), layout="constrained", dpi=120)
    times, rates, roof = figure.subplots(1, 3)
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
        times.plot(x, median, label=name, **style[name])
        times.plot(x, p90, linestyle=":", color=style[name]["color"], linewidth=1)
        rates.plot(x, [r["tiles_per_s"] for _, r in results], **style[name])
    _axes(times, "ms per query: median, dotted p90", log=True)
    _axes(rates, "tiles per second", log=False)
    rates.set_ylim(bottom=0)
    _roofline(roof, document, style)
    figure.legend(loc="outside lower center", ncols=min(5, len(names)), frameon=False, fontsize=8)
    machine, bundle = document["machine"], document["bundle"]
    figure.suptitle(
        f"{bundle['encoder']}, {bundle['tile_px']} px, on {machine['cpu']}, "
        f"{document['settings']['threads']} threads"
        f"{'' if not machine['gpu'] else ', ' + machine['gpu']}; machine {document['verdict']}",
        fontsize=10,
    )
    return figure_bytes(figure)


def _axes(panel: Any, title: str, *, log: bool) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if log:
        panel.set_yscale("log")
    panel.set_xlabel("tiles per query")
    panel.set_title(title, fontsize=10)
    hide_spines(panel)


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
                panel.plot(x, roof, color="#777777", linewidth=0.9, linestyle="--")
                panel.annotate(f"{side} {precision}", (x[-1], roof[-1]), fontsize=7, ha="right", va="bottom")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("operations per byte")
    panel.set_title("GFLOP/s; dashed: peaks measured in the same run", fontsize=10)
    hide_spines(panel)
