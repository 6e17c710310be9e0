"""Figures of an evaluation: the surest genes on the tissue, co-expression, domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mclst.evaluation.coexpression import mean_of, order_genes
from mclst.evaluation.evaluate import Domains, MethodResult, SectionResult
from mclst.evaluation.significance import minus_log10_p
from mclst.runtime.report.figures.colors import COLORMAP
from mclst.runtime.report.figures.layout import DPI, INK, QUIET
from mclst.runtime.report.figures.style import open_frame

TOP_GENES = 6
HEAT_GENES = 50
PANEL = 2.1
"""Inches, of one picture of a section."""
REGION_COLOURS = matplotlib.colormaps["tab10"]


def draw_genes(method: MethodResult) -> Figure:
    """The surest genes, measured above predicted, each on the section where its −log10 p is highest, and all r.

    Colours run from the 1st to the 99th percentile of each map by itself: a prediction, being an average of
    neighbours, spans less than the measurement.
    """
    placed = [found for found in method.sections if found.pair.xy_px is not None]
    genes = method.ranked["gene"].head(TOP_GENES).tolist() if placed else []
    figure = new_figure((len(genes) + 1.6) * PANEL + 0.6, 2 * PANEL + 1.0, method.name)
    grid = figure.add_gridspec(2, len(genes) + 1, width_ratios=[1.0] * len(genes) + [1.3])
    for column, gene in enumerate(genes):
        found, place, r = _surest(placed, gene)
        pair = found.pair
        assert pair.xy_px is not None
        for row, (name, values) in enumerate((("measured", pair.truth), ("predicted", pair.predicted))):
            axes = figure.add_subplot(grid[row, column])
            told = f"{gene}\n{pair.section}" if row == 0 else f"r = {r:.2f}"
            axes.set_title(told, fontsize=9, color=INK if row == 0 else QUIET, parse_math=False)
            _spots(axes, pair.xy_px, values[:, place], cmap=COLORMAP)
            if column == 0:
                axes.text(
                    -0.06, 0.5, name, transform=axes.transAxes, rotation=90, va="center", ha="right", size=9
                )
    _draw_correlations(figure.add_subplot(grid[:, -1]), method)
    return figure


def _surest(sections: Sequence[SectionResult], gene: str) -> tuple[SectionResult, int, float]:
    place = sections[0].pair.genes.index(gene)
    r = [float(found.score.pcc_per_gene[place]) for found in sections]
    logs = [
        float(minus_log10_p(np.array([value]), found.score.spots)[0])
        for value, found in zip(r, sections, strict=True)
    ]
    best = int(np.argmax(np.nan_to_num(logs, nan=-1.0)))
    return sections[best], place, r[best]


def _draw_correlations(axes: Axes, method: MethodResult) -> None:
    values = np.concatenate([found.score.pcc_per_gene for found in method.sections])
    values = values[np.isfinite(values)]
    axes.hist(values, bins=np.linspace(-1, 1, 41).tolist(), color="#8c6bb1")
    axes.axvline(method.mean("pcc_acg"), color=INK, linewidth=1)
    axes.set_title(f"r of all genes, mean {method.mean('pcc_acg'):.3f}", fontsize=9)
    axes.set_xlabel("Pearson r over the spots", fontsize=9)
    axes.tick_params(labelsize=8)
    open_frame(axes)


def draw_coexpression(method: MethodResult) -> Figure:
    """Gene-gene correlation, measured beside predicted, of the 50 genes with the highest mean in the truth."""
    pairs = [found.pair for found in method.sections]
    level = np.mean([pair.truth.mean(axis=0) for pair in pairs], axis=0)
    highest = np.sort(np.argsort(-level, kind="stable")[:HEAT_GENES])
    window = np.ix_(highest, highest)
    measured = mean_of([found.coexpression.measured[window] for found in method.sections])
    predicted = mean_of([found.coexpression.predicted[window] for found in method.sections])
    order = order_genes(measured)
    names = [pairs[0].genes[highest[i]] for i in order]
    figure = new_figure(13.0, 6.6, method.name)
    picture: Any = None
    for place, (title, values) in enumerate((("measured", measured), ("predicted", predicted)), start=1):
        axes = figure.add_subplot(1, 2, place)
        picture = axes.imshow(values[np.ix_(order, order)], cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_title(title, fontsize=11)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=5, parse_math=False)
    figure.colorbar(picture, ax=figure.axes, shrink=0.6, label="Pearson r over the spots")
    told = f"agreement over all pairs of genes: r = {method.coexpression:.3f}"
    figure.text(0.5, 0.02, told, ha="center", size=10, color=QUIET)
    return figure


def draw_domains(sections: Sequence[SectionResult]) -> Figure:
    """Annotation, where there is one, measured and predicted domains of every section that has domains."""
    rows = [(s, s.domains) for s in sections if s.domains is not None and s.pair.xy_px is not None]
    columns = 3 if any(domains.region is not None for _, domains in rows) else 2
    figure = new_figure(columns * PANEL * 1.4 + 0.4, len(rows) * (PANEL * 1.4 + 0.4) + 0.5, "")
    for row, (found, domains) in enumerate(rows):
        for column, (title, values) in enumerate(_domain_panels(domains)[-columns:]):
            axes = figure.add_subplot(len(rows), columns, row * columns + column + 1)
            axes.set_title(f"{found.pair.section}: {title}", fontsize=9, parse_math=False)
            assert found.pair.xy_px is not None
            shown = values >= 0
            colors = REGION_COLOURS(values[shown] % 10)
            _spots(axes, found.pair.xy_px[shown], colors)
    return figure


def _domain_panels(domains: Domains) -> list[tuple[str, NDArray[np.int64]]]:
    of_predicted = domains.of_predicted
    told = f"predicted, ARI {of_predicted.ari:.2f}, NMI {of_predicted.nmi:.2f}"
    panels = []
    if domains.region is not None:
        regions = np.unique(domains.region[domains.region != ""])
        place = {name: i for i, name in enumerate(regions.tolist())}
        panels.append(("annotation", np.array([place.get(name, -1) for name in domains.region.tolist()])))
    measured = "measured"
    if domains.of_measured is not None:
        measured += f", ARI {domains.of_measured.ari:.2f}, NMI {domains.of_measured.nmi:.2f}"
    return [*panels, (measured, domains.measured), (told, domains.predicted)]


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of so many inches, with a title where there is one."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, weight="bold", parse_math=False)
    return figure


def _spots(axes: Axes, xy_px: NDArray[np.float64], values: NDArray[Any], **style: Any) -> None:
    """Spots where they lie, y down; values [n] are coloured by `style`, values [n, 4] are colours."""
    if values.ndim == 1 and len(values):
        low, high = np.percentile(values, [1, 99])
        style |= {"vmin": float(low), "vmax": float(high)}
    size = float(np.clip(2200.0 / max(len(xy_px), 1), 0.5, 40.0))
    axes.scatter(xy_px[:, 0], xy_px[:, 1], s=size, c=values, linewidths=0, **style)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_axis_off()
