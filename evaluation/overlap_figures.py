"""Gene sets in common as figures: an UpSet plot of any number of sets, a Venn diagram of two or three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from mclst.evaluation.figures import new_figure
from mclst.evaluation.overlap import VENN_SETS
from mclst.runtime.report.figures.layout import INK, QUIET

Parts = Mapping[tuple[str, ...], frozenset[str]]
"""The sets that hold a gene, and no other → those genes (`intersections`)."""
SET_COLOURS = matplotlib.colormaps["tab10"]
RADIUS, CENTRE = 0.85, 0.6
"""Of the circles, and how far their centres lie from the middle."""


def draw_venn(parts: Parts, names: Sequence[str]) -> Figure:
    """A Venn diagram of two or three sets, a number in every region; the circles are not to scale.

    Raises ValueError for another number of sets.
    """
    if len(names) not in VENN_SETS:
        raise ValueError(f"{len(names)} sets; a Venn diagram has two or three")
    figure = new_figure(4.0, 4.8, "Predicted genes in common")
    axes = figure.add_subplot()
    angles = np.pi / 2 + np.pi / 2 * (len(names) == 2) - 2 * np.pi * np.arange(len(names)) / len(names)
    centres = CENTRE * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for i, (name, centre) in enumerate(zip(names, centres, strict=True)):
        color = SET_COLOURS(i)
        axes.add_patch(Circle(tuple(centre), RADIUS, facecolor=(*color[:3], 0.25), edgecolor=color))
        total = sum(len(genes) for part, genes in parts.items() if name in part)
        x, beyond = centre[0], (RADIUS + 0.25) * (1 if centre[1] > -1e-9 else -1)
        axes.text(
            x, centre[1] + beyond, f"{name}\n{total}", ha="center", va="center", size=10, parse_math=False
        )
    for members in _regions(names):
        x, y = region_place(centres, [names.index(name) for name in members])
        axes.text(x, y, str(len(parts.get(members, ()))), ha="center", va="center", size=12, color=INK)
    axes.text(0, -1.9, "circles not to scale", ha="center", size=8, color=QUIET)
    axes.set_xlim(-1.6, 1.6)
    axes.set_ylim(-2.0, 1.95)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return figure


def _regions(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of sets, each in the order of `names`."""
    codes = range(1, 1 << len(names))
    return [tuple(name for i, name in enumerate(names) if code >> i & 1) for code in codes]


def region_place(centres: np.ndarray, members: Sequence[int]) -> tuple[float, float]:
    """A point within the circles `members` and no other; centres [2 or 3, 2] round the origin."""
    if len(members) == len(centres):
        return 0.0, 0.0
    toward = centres[list(members)].mean(axis=0)
    far = 0.95 if len(members) == 1 else 0.55
    x, y = toward / np.linalg.norm(toward) * far
    return float(x), float(y)


def draw_upset(parts: Mapping[tuple[str, ...], frozenset[str]], names: Sequence[str]) -> Figure:
    """An UpSet plot: how many genes stand in just these sets (columns), and how many in each set (left)."""
    columns = list(parts)
    figure = new_figure(
        max(4.0, 2.6 + 0.45 * len(columns)), 2.6 + 0.34 * len(names), "Predicted genes in common"
    )
    grid = figure.add_gridspec(
        2, 2, width_ratios=[1, max(1.0, 0.35 * len(columns))], height_ratios=[2, max(1.0, 0.3 * len(names))]
    )
    above, below, left = (figure.add_subplot(grid[place]) for place in ((0, 1), (1, 1), (1, 0)))
    sizes = [len(parts[column]) for column in columns]
    bars = above.bar(range(len(columns)), sizes, color=INK, width=0.6)
    above.bar_label(bars, fontsize=8)
    for column, members in enumerate(columns):
        rows = [names.index(name) for name in members]
        below.scatter([column] * len(names), range(len(names)), s=40, color="#dddddd")
        below.plot([column] * len(rows), rows, "o-", color=INK, markersize=6, linewidth=2)
    totals = [sum(len(genes) for part, genes in parts.items() if name in part) for name in names]
    left.barh(range(len(names)), totals, color="#8c6bb1", height=0.6)
    left.invert_xaxis()
    left.set_yticks(range(len(names)), names, parse_math=False)
    left.set_xlabel("genes", fontsize=8)
    for axes in (above, below):
        axes.set_xlim(-0.6, max(len(columns), 1) - 0.4)
        axes.set_xticks([])
    for axes in (below, left):
        axes.set_ylim(len(names) - 0.5, -0.5)
    below.set_yticks([])
    above.set_ylabel("genes in just these", fontsize=8)
    for axes in (above, below, left):
        axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure
