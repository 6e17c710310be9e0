"""Figures of an evaluation: the most significant genes on the tissue, co-expression, domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mclst.evaluation.evaluate import Domains, MethodResult, SectionResult
from mclst.evaluation.metrics.coexpression import mean_of, order_genes
from mclst.evaluation.metrics.significance import minus_log10_p
from mclst.runtime.report.figures.colors import INK, MUTED
from mclst.runtime.report.figures.layout import DPI
from mclst.runtime.report.figures.style import COLORMAP, hide_spines

N_TOP_GENES = 6
N_HEATMAP_GENES = 50
PANEL = 2.1
"""Width of a panel, inches."""
REGION_COLORS = matplotlib.colormaps["tab10"]


def draw_genes(method: MethodResult) -> Figure:
    """Draw the most significant genes, measured above predicted, and a histogram of all r.

    Each gene is shown on the section where its −log10 p is highest. Each map has its own color range, the 1st
    to 99th
    percentile: a prediction averages neighbors and spans less than the measurement.
    """
    with_xy = [section for section in method.sections if section.pair.xy_px is not None]
    genes = method.ranked["gene"].head(N_TOP_GENES).tolist() if with_xy else []
    figure = new_figure((len(genes) + 1.6) * PANEL + 0.6, 2 * PANEL + 1.0, method.name)
    grid = figure.add_gridspec(2, len(genes) + 1, width_ratios=[1.0] * len(genes) + [1.3])
    for column, gene in enumerate(genes):
        section, index, r = _best_section(with_xy, gene)
        pair = section.pair
        assert pair.xy_px is not None
        for row, (name, values) in enumerate((("measured", pair.truth), ("predicted", pair.predicted))):
            axes = figure.add_subplot(grid[row, column])
            title = f"{gene}\n{pair.section}" if row == 0 else f"r = {r:.2f}"
            axes.set_title(title, fontsize=9, color=INK if row == 0 else MUTED, parse_math=False)
            _scatter_spots(axes, pair.xy_px, values[:, index], cmap=COLORMAP)
            if column == 0:
                axes.text(
                    -0.06, 0.5, name, transform=axes.transAxes, rotation=90, va="center", ha="right", size=9
                )
    _draw_correlations(figure.add_subplot(grid[:, -1]), method)
    return figure


def _best_section(sections: Sequence[SectionResult], gene: str) -> tuple[SectionResult, int, float]:
    """Section where a gene is most significant, the gene's index, and its r there."""
    index = sections[0].pair.genes.index(gene)
    r = [float(section.score.pcc_per_gene[index]) for section in sections]
    significance = [
        float(minus_log10_p(np.array([value]), section.score.spots)[0])
        for value, section in zip(r, sections, strict=True)
    ]
    best = int(np.argmax(np.nan_to_num(significance, nan=-1.0)))
    return sections[best], index, r[best]


def _draw_correlations(axes: Axes, method: MethodResult) -> None:
    values = np.concatenate([section.score.pcc_per_gene for section in method.sections])
    values = values[np.isfinite(values)]
    axes.hist(values, bins=np.linspace(-1, 1, 41).tolist(), color="#8c6bb1")
    axes.axvline(method.mean("pcc_acg"), color=INK, linewidth=1)
    axes.set_title(f"r of all genes, mean {method.mean('pcc_acg'):.3f}", fontsize=9)
    axes.set_xlabel("Pearson r over the spots", fontsize=9)
    axes.tick_params(labelsize=8)
    hide_spines(axes)


def draw_coexpression(method: MethodResult) -> Figure:
    """Draw measured and predicted gene-gene correlations of the 50 genes highest in the truth."""
    pairs = [section.pair for section in method.sections]
    mean_expression = np.mean([pair.truth.mean(axis=0) for pair in pairs], axis=0)
    highest = np.sort(np.argsort(-mean_expression, kind="stable")[:N_HEATMAP_GENES])
    selection = np.ix_(highest, highest)
    measured = mean_of([section.coexpression.measured[selection] for section in method.sections])
    predicted = mean_of([section.coexpression.predicted[selection] for section in method.sections])
    order = order_genes(measured)
    names = [pairs[0].genes[highest[i]] for i in order]
    figure = new_figure(13.0, 6.6, method.name)
    image: Any = None
    for column, (title, values) in enumerate((("measured", measured), ("predicted", predicted)), start=1):
        axes = figure.add_subplot(1, 2, column)
        image = axes.imshow(values[np.ix_(order, order)], cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_title(title, fontsize=11)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5, parse_math=False)
        axes.set_yticks(range(len(names)), names, fontsize=5, parse_math=False)
    figure.colorbar(image, ax=figure.axes, shrink=0.6, label="Pearson r over the spots")
    note = f"agreement over all pairs of genes: r = {method.coexpression:.3f}"
    figure.text(0.5, 0.02, note, ha="center", size=10, color=MUTED)
    return figure


def draw_domains(sections: Sequence[SectionResult]) -> Figure:
    """Draw annotated regions (if any), measured and predicted domains of every section with domains."""
    rows = [(s, s.domains) for s in sections if s.domains is not None and s.pair.xy_px is not None]
    columns = 3 if any(domains.region is not None for _, domains in rows) else 2
    figure = new_figure(columns * PANEL * 1.4 + 0.4, len(rows) * (PANEL * 1.4 + 0.4) + 0.5, "")
    for row, (section, domains) in enumerate(rows):
        for column, (title, values) in enumerate(_domain_panels(domains)[-columns:]):
            axes = figure.add_subplot(len(rows), columns, row * columns + column + 1)
            axes.set_title(f"{section.pair.section}: {title}", fontsize=9, parse_math=False)
            assert section.pair.xy_px is not None
            labeled = values >= 0
            colors = REGION_COLORS(values[labeled] % 10)
            _scatter_spots(axes, section.pair.xy_px[labeled], colors)
    return figure


def _domain_panels(domains: Domains) -> list[tuple[str, NDArray[np.int64]]]:
    of_predicted = domains.of_predicted
    title = f"predicted, ARI {of_predicted.ari:.2f}, NMI {of_predicted.nmi:.2f}"
    panels = []
    if domains.region is not None:
        regions = np.unique(domains.region[domains.region != ""])
        index_of = {name: i for i, name in enumerate(regions.tolist())}
        panels.append(("annotation", np.array([index_of.get(name, -1) for name in domains.region.tolist()])))
    measured = "measured"
    if domains.of_measured is not None:
        measured += f", ARI {domains.of_measured.ari:.2f}, NMI {domains.of_measured.nmi:.2f}"
    return [*panels, (measured, domains.measured), (title, domains.predicted)]


def new_figure(width: float, height: float, title: str) -> Figure:
    """Create an empty figure, size in inches, with an optional title."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, weight="bold", parse_math=False)
    return figure


def _scatter_spots(axes: Axes, xy_px: NDArray[np.float64], values: NDArray[Any], **style: Any) -> None:
    """Scatter spots, y down; values [n] are mapped to colors by `style`, values [n, 4] are colors."""
    if values.ndim == 1 and len(values):
        low, high = np.percentile(values, [1, 99])
        style |= {"vmin": float(low), "vmax": float(high)}
    size = float(np.clip(2200.0 / max(len(xy_px), 1), 0.5, 40.0))
    axes.scatter(xy_px[:, 0], xy_px[:, 1], s=size, c=values, linewidths=0, **style)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_axis_off()
