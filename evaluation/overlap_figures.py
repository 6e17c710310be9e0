"""Figures of overlapping gene sets: an UpSet plot, or a Venn diagram of two or three sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from mclst.evaluation.figures import new_figure
from mclst.evaluation.metrics.overlap import VENN_SETS
from mclst.runtime.report.figures.colors import INK, MUTED

Parts = Mapping[tuple[str, ...], frozenset[str]]
"""Genes by the exact combination of sets that contain them; see `intersections`."""
SET_COLORS = matplotlib.colormaps["tab10"]
RADIUS, CENTER_DISTANCE = 0.85, 0.6
"""Radius of the circles, and distance of their centers from the origin."""


def draw_venn(parts: Parts, names: Sequence[str]) -> Figure:
    """Draw a Venn diagram of two or three sets with the number of genes in each region, not to scale.

    Raises ValueError for another number of sets.
    """
    if len(names) not in VENN_SETS:
        raise ValueError(f"{len(names)} sets; a Venn diagram has two or three")
    figure = new_figure(4.0, 4.8, "Predicted genes in common")
    axes = figure.add_subplot()
    angles = np.pi / 2 + np.pi / 2 * (len(names) == 2) - 2 * np.pi * np.arange(len(names)) / len(names)
    centers = CENTER_DISTANCE * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for i, (name, center) in enumerate(zip(names, centers, strict=True)):
        color = SET_COLORS(i)
        axes.add_patch(Circle(tuple(center), RADIUS, facecolor=(*color[:3], 0.25), edgecolor=color))
        size = sum(len(genes) for part, genes in parts.items() if name in part)
        x, offset = center[0], (RADIUS + 0.25) * (1 if center[1] > -1e-9 else -1)
        axes.text(
            x, center[1] + offset, f"{name}\n{size}", ha="center", va="center", size=10, parse_math=False
        )
    for members in _regions(names):
        x, y = region_center(centers, [names.index(name) for name in members])
        axes.text(x, y, str(len(parts.get(members, ()))), ha="center", va="center", size=12, color=INK)
    axes.text(0, -1.9, "circles not to scale", ha="center", size=8, color=MUTED)
    axes.set_xlim(-1.6, 1.6)
    axes.set_ylim(-2.0, 1.95)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return figure


def _regions(names: Sequence[str]) -> list[tuple[str, ...]]:
    """All combinations of sets, each in the order of `names`."""
    codes = range(1, 1 << len(names))
    return [tuple(name for i, name in enumerate(names) if code >> i & 1) for code in codes]


def region_center(centers: np.ndarray, members: Sequence[int]) -> tuple[float, float]:
    """A point inside the circles `members` and no other; centers [2 or 3, 2] around the origin."""
    if len(members) == len(centers):
        return 0.0, 0.0
    direction = centers[list(members)].mean(axis=0)
    distance = 0.95 if len(members) == 1 else 0.55
    x, y = direction / np.linalg.norm(direction) * distance
    return float(x), float(y)


def draw_upset(parts: Mapping[tuple[str, ...], frozenset[str]], names: Sequence[str]) -> Figure:
    """Draw an UpSet plot: genes in exactly these sets (columns), and genes of each set (left)."""
    columns = list(parts)
    figure = new_figure(
        max(4.0, 2.6 + 0.45 * len(columns)), 2.6 + 0.34 * len(names), "Predicted genes in common"
    )
    grid = figure.add_gridspec(
        2, 2, width_ratios=[1, max(1.0, 0.35 * len(columns))], height_ratios=[2, max(1.0, 0.3 * len(names))]
    )
    bar_axes, dot_axes, size_axes = (figure.add_subplot(grid[cell]) for cell in ((0, 1), (1, 1), (1, 0)))
    sizes = [len(parts[column]) for column in columns]
    bars = bar_axes.bar(range(len(columns)), sizes, color=INK, width=0.6)
    bar_axes.bar_label(bars, fontsize=8)
    for column, members in enumerate(columns):
        rows = [names.index(name) for name in members]
        dot_axes.scatter([column] * len(names), range(len(names)), s=40, color="#dddddd")
        dot_axes.plot([column] * len(rows), rows, "o-", color=INK, markersize=6, linewidth=2)
    totals = [sum(len(genes) for part, genes in parts.items() if name in part) for name in names]
    size_axes.barh(range(len(names)), totals, color="#8c6bb1", height=0.6)
    size_axes.invert_xaxis()
    size_axes.set_yticks(range(len(names)), names, parse_math=False)
    size_axes.set_xlabel("genes", fontsize=8)
    for axes in (bar_axes, dot_axes):
        axes.set_xlim(-0.6, max(len(columns), 1) - 0.4)
        axes.set_xticks([])
    for axes in (dot_axes, size_axes):
        axes.set_ylim(len(names) - 0.5, -0.5)
    dot_axes.set_yticks([])
    bar_axes.set_ylabel("genes in just these", fontsize=8)
    for axes in (bar_axes, dot_axes, size_axes):
        axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure
