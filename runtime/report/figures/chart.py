"""Charts of measurements in the style of the sheets: their width, fonts and colors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mclst.runtime.report.figures.colors import INK, MUTED
from mclst.runtime.report.figures.style import hide_spines

DPI = 120
WIDTH = 1600 / DPI
MARGIN, HEAD, FOOT, LEGEND_ROW = 0.5, 1.0, 0.15, 0.25
"""Inches: free at both sides; title and facts at the top; free below; a row of the legend."""


def new_chart(
    title: str, facts: str, height: float, ratios: Sequence[float] = (1.0,), rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """Create a chart with a title, a line of facts below it, and empty panels.

    Parameters
    ----------
    title : str
        What is shown, in few words.
    facts : str
        What it was measured on.
    height : float
        Inches of the panels of one row with their labels.
    ratios : sequence of float
        Relative widths of the panels in a row.
    rows : int
        Rows of panels.

    Returns
    -------
    figure : Figure
    panels : list of Axes
        Row by row, without upper and right spines.
    """
    total = HEAD + rows * height
    figure = Figure(figsize=(WIDTH, total), dpi=DPI, facecolor="white", layout="constrained")
    _leave_free(figure, FOOT)
    style: dict[str, Any] = {"x": MARGIN / WIDTH, "parse_math": False, "in_layout": False}
    figure.text(y=1 - 0.5 / total, s=title, size=20, weight="bold", color=INK, **style)
    figure.text(y=1 - 0.78 / total, s=facts, size=11, color=MUTED, **style)
    panels: list[Axes] = list(figure.subplots(rows, len(ratios), width_ratios=ratios, squeeze=False).ravel())
    for panel in panels:
        hide_spines(panel)
        panel.tick_params(labelsize=10, color=MUTED, labelcolor=INK)
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set(size=11, color=INK)
        for spine in panel.spines.values():
            spine.set_color(MUTED)
    return figure, panels


def name_panel(panel: Axes, title: str) -> None:
    """Give a panel its title."""
    panel.set_title(title, fontsize=12, weight="bold", color=INK, loc="left", parse_math=False)


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    """Put one legend below the panels."""
    height = LEGEND_ROW * -(-len(labels) // columns)
    _leave_free(figure, FOOT + height + 0.1)
    anchor = (MARGIN / WIDTH, FOOT / float(figure.get_figheight()))
    legend = figure.legend(
        handles,
        labels,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=anchor,
        borderaxespad=0,
        borderpad=0,
        frameon=False,
        fontsize=10,
        labelcolor=INK,
    )
    legend.set_in_layout(False)


def _leave_free(figure: Figure, foot: float) -> None:
    """Lay the panels out between the head and `foot`, inches."""
    layout: Any = figure.get_layout_engine()
    side, total = MARGIN / WIDTH, float(figure.get_figheight())
    layout.set(rect=(side, foot / total, 1 - 2 * side, 1 - (HEAD + foot) / total), wspace=0.04, hspace=0.04)
