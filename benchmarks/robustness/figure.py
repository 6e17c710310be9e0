"""The figure of a robustness measurement."""

from __future__ import annotations

from typing import Any

from mclst.runtime.report.figures.chart import add_legend, new_chart
from mclst.runtime.report.figures.colors import MUTED
from mclst.runtime.report.figures.style import OURS, THEIRS, figure_bytes


def draw(result: dict[str, Any], title: str) -> bytes:
    """Draw change per gene, and with a truth the scores, of each perturbation; a PNG."""
    entries: dict[str, Any] = result["perturbations"]
    reference, *names = entries
    scored = "scores" in entries[reference]
    facts = "expression when the same tissue looks different"
    height = 0.36 * len(names) + 1.4
    figure, panels = new_chart(f"Robustness: {title}", facts, height, (1, 1) if scored else (1,))
    changes = [[g["change"] for g in entries[n]["genes"].values() if g["change"] is not None] for n in names]
    places = range(len(names), 0, -1)
    boxes = panels[0].boxplot(
        changes,
        positions=list(places),
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
    )
    for box in boxes["boxes"]:
        box.set(facecolor="#dfe9f3", edgecolor=OURS)
    for line in boxes["medians"]:
        line.set(color=OURS, linewidth=2)
    panels[0].set_yticks(list(places), names)
    panels[0].axvline(1.0, color=MUTED, linewidth=0.8, linestyle=":")
    panels[0].set_xlim(left=0)
    panels[0].set_xlabel(
        "change per gene, in its standard deviations over the spots\n(box: quartiles, lines: 5 to 95 %)"
    )
    if scored:
        for measure, color, label in (("pcc_acg", OURS, "all genes"), ("pcc_heg", THEIRS, "50 highest")):
            values = [entries[name]["scores"][measure] for name in names]
            before = entries[reference]["scores"][measure]
            kept = [(v, p) for v, p in zip(values, places, strict=True) if v is not None]
            panels[1].plot([v for v, _ in kept], [p for _, p in kept], "o", color=color, label=label)
            if before is not None:
                panels[1].axvline(before, color=color, linewidth=1.2)
        panels[1].set_xlabel("mean r with the measured section\n(lines: tiles as they are)")
        panels[1].set_yticks(list(places), [""] * len(names))
        panels[1].set_ylim(panels[0].get_ylim())
        add_legend(figure, *panels[1].get_legend_handles_labels(), columns=2)
    return figure_bytes(figure)
