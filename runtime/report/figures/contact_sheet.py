"""Contact sheet of an expression map: genes over the tissue, the most spatially structured or named ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mclst.runtime.atomic import write_atomically
from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.distinct import COPY
from mclst.runtime.expression_map.morans_i import N_NEIGHBORS, nan_rows
from mclst.runtime.expression_map.reader import Map
from mclst.runtime.expression_map.writer import downscale, estimate_spot_diameter
from mclst.runtime.report.figures.colors import ALARM, EXPRESSION, INK, MUTED, color_limits, color_spots
from mclst.runtime.report.figures.layout import DPI, Box, GenesLayout, Page, Window, baseline
from mclst.runtime.report.figures.raster import RasterPage

PANELS = 8
MAX_DISCS = 20_000
"""More spots are drawn as an image: a million discs would take minutes."""
MAX_CELLS = 16_000_000
MIN_SPOT_PX = 1.6
"""Smaller spots are enlarged to this diameter on the sheet to stay visible."""
UNIT: Window = (0.0, 1.0, 0.0, 1.0)
DOT = ((0.45, 28), (0.27, 255))
"""The mark of a spot outside: diameters, of its own, and gray of two discs, that show on every color."""


def write_contact_sheet(
    expression_map: Map, path: Path, *, genes: Sequence[str] | None = None, dpi: int = DPI
) -> tuple[tuple[str, float], ...]:
    """Draw a contact sheet and write it atomically.

    Parameters
    ----------
    expression_map : Map
    path : Path
        A PDF or SVG by its suffix, else a PNG.
    genes : sequence of str, optional
        The genes to draw, in this order. Default: up to `PANELS` structured genes that differ, reliable ones
        where the map is calibrated; see `Map.distinct`.
    dpi : int
        Dots per inch of a PNG, and of the tissue in a PDF or SVG.

    Returns
    -------
    tuple of (str, float)
        The drawn genes and their Moran's I.

    Raises
    ------
    InputError
        If the map lacks a gene, or no spot is on the tissue image.
    OutputError
        If the file cannot be written.
    """
    alike: list[float] = []
    if genes is None:
        distinct = expression_map.distinct(PANELS)
        indices, alike = [gene for gene, _ in distinct], [r for _, r in distinct]
    else:
        indices = expression_map.gene_indices(genes)
    kind = path.suffix.lstrip(".").lower()
    write_atomically(path, _draw(expression_map, indices, kind, dpi, alike))
    return tuple((expression_map.genes[g], float(expression_map.morans_i[g])) for g in indices)


def _page(height: float, kind: str, dpi: int) -> tuple[Page, str]:
    if kind not in ("pdf", "svg"):
        return RasterPage(height, dpi), "png"
    from mclst.runtime.report.figures.vector import VectorPage  # loads matplotlib

    return VectorPage(height, dpi), kind


def _draw(
    expression_map: Map,
    genes: Sequence[int],
    kind: str = "png",
    dpi: int = DPI,
    alike: Sequence[float] = (),
) -> bytes:
    """Draw genes; alike: of each the largest |r| with one before it, where they were chosen by it."""
    diameter = expression_map.spot_diameter_px or estimate_spot_diameter(expression_map.xy_px)
    window = _window(expression_map, diameter)
    layout = GenesLayout(len(genes), (window[1] - window[0]) / (window[3] - window[2]))
    page, kind = _page(layout.height, kind, dpi)
    image, extent = _crop(expression_map, window)
    blank = nan_rows(expression_map.expression)
    dense = len(blank) > MAX_DISCS
    facts = _facts(expression_map, blank, dense=dense)
    _draw_captions(page, layout, expression_map, facts, _remark(expression_map, alike))
    page.picture([layout.tissue], image, extent, window)
    page.text(layout.margin, layout.tissue[1] - 0.09, "Tissue", size=12, bold=True)
    if expression_map.mpp is not None:
        _draw_scale_bar(page, layout.tissue, (window[1] - window[0]) * expression_map.mpp)
    faded = _fade(downscale(image, 1.0, math.ceil(max(layout.panel, layout.panel_height) * dpi))[0])
    page.picture(layout.boxes, faded, extent, window)
    pixel = (window[1] - window[0]) / (layout.panel * DPI)
    known_px = expression_map.xy_px[~blank]
    values = [np.asarray(expression_map.expression[:, gene])[~blank] for gene in genes]
    limits = [color_limits(of_gene) for of_gene in values]
    if dense:
        for box, of_gene, ends in zip(layout.boxes, values, limits, strict=True):
            _draw_cells(page, box, window, known_px, of_gene, diameter, pixel, ends)
    else:
        size = max(diameter, MIN_SPOT_PX * pixel)
        colors = [color_spots(of_gene, ends) for of_gene, ends in zip(values, limits, strict=True)]
        page.spots(layout.boxes, window, expression_map.xy_px[blank], size, MUTED)
        page.spots(layout.boxes, window, known_px, size, colors)
        outside_px = expression_map.xy_px[expression_map.outside & ~blank]
        for share, gray in DOT:
            dots = [np.full((len(outside_px), 3), gray, np.uint8)] * len(layout.boxes)
            page.spots(layout.boxes, window, outside_px, share * size, dots)
    for number, (gene, box, ends) in enumerate(zip(genes, layout.boxes, limits, strict=True)):
        like = f"  alike {alike[number]:.2f}" if number and alike else ""
        _draw_gene_captions(page, box, expression_map, gene, ends, like, stacked=layout.stacked)
    return page.content(kind)


def _remark(expression_map: Map, alike: Sequence[float]) -> str:
    if not alike:
        return ""
    rest = f"; those left out exceed {COPY:g}" if len(alike) < min(PANELS, len(expression_map.genes)) else ""
    return f"   alike: largest |r| with a gene before it{rest}."


def _draw_gene_captions(
    page: Page,
    box: Box,
    expression_map: Map,
    gene: int,
    limits: tuple[float, float],
    like: str,
    *,
    stacked: bool,
) -> None:
    moran = expression_map.morans_i[gene]
    note = "constant" if np.isnan(moran) else f"I {moran:.2f}"
    if expression_map.expected_r is not None:
        r = expression_map.expected_r[gene]
        note += "  r –" if np.isnan(r) else f"  r {r:.2f}"
    note += like
    name, line = expression_map.genes[gene], box[1] - 0.09
    if stacked:
        page.text(box[0], line, note, box[2], size=10, color=MUTED)
        page.text(box[0], line - 0.19, name, box[2], size=12, bold=True)
    else:
        width = page.text(box[0] + box[2], line, note, size=10, color=MUTED, align="right")
        page.text(box[0], line, name, box[2] - width - 0.1, size=12, bold=True)
    _draw_color_bar(page, box, limits)


def _facts(expression_map: Map, blank: NDArray[np.bool_], *, dense: bool) -> list[str]:
    facts = [f"{len(blank):,} spots", f"{len(expression_map.genes):,} genes"]
    if blank.any():
        facts.append(f"{np.count_nonzero(blank):,} without a prediction" + ("" if dense else " (rings)"))
    if outside := np.count_nonzero(expression_map.outside & ~blank):
        facts.append(f"{outside:,} outside, unlike the training's tissue" + ("" if dense else " (dots)"))
    return facts


def _draw_captions(
    page: Page, layout: GenesLayout, expression_map: Map, facts: Sequence[str], remark: str
) -> None:
    left, width = layout.margin, page.width - 2 * layout.margin
    page.text(left, 0.58, expression_map.title, width, size=20, bold=True)
    page.text(left, 0.86, "  ·  ".join(facts), width, size=11, color=MUTED)
    trust = expression_map.provenance.get("trust", {})
    if isinstance(verdict := trust.get("verdict"), str):
        alarm = float(trust.get("outside_share", 0)) > 0.5
        color = ALARM if alarm else MUTED
        page.text(left, page.height - 0.44, f"Trust: {verdict}.", width, size=9, bold=alarm, color=color)
    expected = "" if expression_map.expected_r is None else "   r: expected in a new section."
    quantity = "Predicted expression" if expression_map.provenance else "Expression"
    note = (
        f"{quantity}; colors span each gene's 1st to 99th percentile.   "
        f"I: Moran's I over {N_NEIGHBORS} neighbors.{expected}{remark}"
    )
    page.text(left, page.height - 0.28, note, size=9, color=MUTED)


def _draw_scale_bar(page: Page, box: Box, width_um: float) -> None:
    length_um = _round_length(width_um / 3)
    length, below = box[2] * length_um / width_um, box[1] + box[3]
    page.rectangle((box[0], below + 0.13, length, 0.035), INK)
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    page.text(box[0] + length + 0.08, baseline(below + 0.15, 9), label, size=9)


def _draw_color_bar(page: Page, box: Box, limits: tuple[float, float]) -> None:
    left, top, width, height = box
    middle = top + height + 0.15
    low, high = (_format_limit(limit, limits[1] - limits[0]) for limit in limits)
    line = baseline(middle, 9)
    before = page.text(left, line, low, size=9, color=MUTED) + 0.08
    after = page.text(left + width, line, high, size=9, color=MUTED, align="right") + 0.08
    bar = (left + before, middle - 0.035, width - before - after, 0.07)
    page.picture([bar], EXPRESSION[None], UNIT, UNIT, smooth=False)


def _draw_cells(
    page: Page,
    box: Box,
    window: Window,
    xy_px: NDArray[np.float64],
    values: NDArray[np.float32],
    side: float,
    pixel: float,
    limits: tuple[float, float],
) -> None:
    """Draw spots as squares of `side`; squares below a pixel of the sheet are averaged."""
    if not len(xy_px):
        return
    side *= max(1, math.ceil(pixel / side))
    left, top = xy_px.min(axis=0) - side / 2
    column, row = np.floor((xy_px - (left, top)) / side).astype(np.int64).T
    columns, rows = int(column.max()) + 1, int(row.max()) + 1
    if columns * rows > MAX_CELLS:  # sparse spots: bound the memory of the image
        return _draw_cells(page, box, window, xy_px, values, 2 * side, pixel, limits)
    counts = np.bincount(row * columns + column, minlength=columns * rows)
    sums = np.bincount(row * columns + column, values, minlength=columns * rows)
    cells = np.zeros((rows * columns, 4), np.uint8)
    known = counts > 0
    cells[known, :3], cells[known, 3] = color_spots(sums[known] / counts[known], limits), 255
    extent = (left, left + columns * side, top, top + rows * side)
    page.picture([box], cells.reshape(rows, columns, 4), extent, window, smooth=False)


def _window(expression_map: Map, diameter: float) -> Window:
    """Return the extent of the spots with a margin, inside the image, no narrower than 1:3."""
    sides = []
    for axis, image_px in ((0, expression_map.image.shape[1]), (1, expression_map.image.shape[0])):
        coordinates = expression_map.xy_px[:, axis]
        low, high = float(coordinates.min()), float(coordinates.max())
        margin = max(1.5 * diameter, 0.04 * (high - low))
        sides += [
            min(low - diameter / 2, max(low - margin, 0.0)),
            max(high + diameter / 2, min(high + margin, image_px / expression_map.image_scale)),
        ]
    left, right, top, bottom = sides
    extra_x = max(0.0, (bottom - top) / 3 - (right - left)) / 2
    extra_y = max(0.0, (right - left) / 3 - (bottom - top)) / 2
    return left - extra_x, right + extra_x, top - extra_y, bottom + extra_y


def _crop(expression_map: Map, window: Window) -> tuple[NDArray[np.uint8], Window]:
    """Return the part of the tissue image in `window` and its extent, level-0 px."""
    image, scale = expression_map.image, expression_map.image_scale
    scaled = [side * scale for side in window]
    left, right = max(0, math.floor(scaled[0])), min(image.shape[1], math.ceil(scaled[1]))
    top, bottom = max(0, math.floor(scaled[2])), min(image.shape[0], math.ceil(scaled[3]))
    if left >= right or top >= bottom:
        raise InputError(
            f"{expression_map.title}: no spot is on its tissue image; check the spots' coordinates"
        )
    return image[top:bottom, left:right], (left / scale, right / scale, top / scale, bottom / scale)


def _fade(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make the tissue pale and gray, so that only the spots have color."""
    gray, own, white = 0.3 * np.array([0.299, 0.587, 0.114]), 0.1 * np.eye(3), [[153.0]] * 3
    matrix = np.hstack([own + gray, white]).ravel().tolist()
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("RGB", matrix))


def _round_length(length: float) -> float:
    """Return the largest of 1, 2, 5 x 10ⁿ up to `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length * (1 + 1e-9))


def _format_limit(value: float, span: float) -> str:
    """Format a limit of a color scale with two digits of its span."""
    decimals = 1 - math.floor(math.log10(span)) if span > 0 else 2
    text = f"{value:.1e}" if decimals > 4 or abs(value) >= 1e5 else f"{value:.{max(0, decimals)}f}"
    return text.replace("-", "−")
