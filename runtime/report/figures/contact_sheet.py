"""Contact sheet of an expression map: genes over the tissue, the most spatially structured or named ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mclst.runtime.atomic import write_atomically
from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.morans_i import N_NEIGHBORS, nan_rows
from mclst.runtime.expression_map.reader import Map
from mclst.runtime.expression_map.writer import downscale, estimate_spot_diameter
from mclst.runtime.report.figures.layout import DPI, Box, GenesPage, Page
from mclst.runtime.report.figures.style import COLORMAP, FORMATS, INK, MUTED, color_limits

PANELS = 8
MAX_ELLIPSES = 20_000
"""More spots are drawn as an image: a million ellipses would take minutes and gigabytes."""
MAX_CELLS = 16_000_000
MIN_SPOT_PX = 1.6
"""Smaller spots are enlarged to this diameter on the sheet to stay visible."""
Window = tuple[float, float, float, float]
"""Level-0 px: left, right, top, bottom."""


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
        The genes to draw, in this order. Default: the `PANELS` structured genes that differ most, reliable
        ones where the map is calibrated; see `Map.distinct`.
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
    indices = expression_map.distinct(PANELS) if genes is None else expression_map.gene_indices(genes)
    kind = path.suffix.lstrip(".").lower()
    page = _draw(expression_map, indices)
    write_atomically(path, page.content(kind if kind in FORMATS else "png", dpi))
    return tuple((expression_map.genes[g], float(expression_map.morans_i[g])) for g in indices)


def _draw(expression_map: Map, genes: Sequence[int]) -> GenesPage:
    diameter = expression_map.spot_diameter_px or estimate_spot_diameter(expression_map.xy_px)
    window = _window(expression_map, diameter)
    page = GenesPage(len(genes), (window[1] - window[0]) / (window[3] - window[2]))
    image, extent = _crop(expression_map, window)
    blank = nan_rows(expression_map.expression)
    _draw_captions(page, expression_map, int(np.count_nonzero(blank)))
    draw_tissue(page.axes(*page.tissue), image, extent, window)
    page.text(page.margin, page.tissue[1] - 0.09, "Tissue", size=12, weight="bold")
    if expression_map.mpp is not None:
        _draw_scale_bar(page, page.tissue, (window[1] - window[0]) * expression_map.mpp)
    faded = _fade(downscale(image, 1.0, math.ceil(max(page.panel, page.panel_height) * DPI))[0])
    pixel = (window[1] - window[0]) / (page.panel * DPI)
    spot_size = max(diameter, MIN_SPOT_PX * pixel)
    xy_px = expression_map.xy_px
    for index, gene in enumerate(genes):
        box = page.box(index)
        axes = page.axes(*box)
        draw_tissue(axes, faded, extent, window)
        values = np.asarray(expression_map.expression[:, gene])[~blank]
        limits = color_limits(values)
        if len(xy_px) > MAX_ELLIPSES:
            _draw_cells(axes, xy_px[~blank], values, diameter, pixel, limits)
        else:
            draw_spots(axes, xy_px[blank], spot_size, facecolors="none", edgecolors=MUTED, linewidths=0.5)
            spots = draw_spots(axes, xy_px[~blank], spot_size, cmap=COLORMAP, linewidths=0, clim=limits)
            spots.set_array(values)
        moran = expression_map.morans_i[gene]
        note = "constant" if np.isnan(moran) else f"I = {moran:.2f}"
        if expression_map.expected_r is not None:
            note += f"   r {expression_map.expected_r[gene]:.2f}"
        width = page.text(box[0] + box[2], box[1] - 0.09, note, size=10, color=MUTED, ha="right")
        name = expression_map.genes[gene]
        page.text(box[0], box[1] - 0.09, name, box[2] - width - 0.1, size=12, weight="bold")
        _draw_color_bar(page, box, limits)
    return page


def _draw_captions(page: GenesPage, expression_map: Map, blank: int) -> None:
    width = page.width - 2 * page.margin
    page.text(page.margin, 0.58, expression_map.title, width, size=20, weight="bold")
    facts = [f"{len(expression_map.xy_px):,} spots", f"{len(expression_map.genes):,} genes"]
    if blank:
        facts.append(f"{blank:,} without a prediction (rings)")
    page.text(page.margin, 0.86, "  ·  ".join(facts), width, size=11, color=MUTED)
    verdict = expression_map.provenance.get("trust", {}).get("verdict")
    if isinstance(verdict, str):
        page.text(page.margin, page.height - 0.44, f"Trust: {verdict}.", width, size=9, color=MUTED)
    expected = "" if expression_map.expected_r is None else "   r: expected in a new section."
    note = (
        "Predicted expression; colors span each gene's 1st to 99th percentile over the spots.   "
        f"I: Moran's I over the {N_NEIGHBORS} nearest spots.{expected}"
    )
    page.text(page.margin, page.height - 0.28, note, size=9, color=MUTED)


def _draw_scale_bar(page: Page, box: Box, width_um: float) -> None:
    length_um = _round_length(width_um / 3)
    length = box[2] * length_um / width_um
    bar = page.axes(box[0], box[1] + box[3] + 0.13, length, 0.035)
    bar.add_patch(Rectangle((0, 0), 1, 1, transform=bar.transAxes, color=INK))
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    page.text(box[0] + length + 0.08, box[1] + box[3] + 0.15, label, size=9, va="center_baseline")


def _draw_color_bar(page: Page, box: Box, limits: tuple[float, float]) -> None:
    left, top, width, height = box
    middle = top + height + 0.15
    low, high = (_format_limit(limit, limits[1] - limits[0]) for limit in limits)
    style: dict[str, Any] = {"size": 9, "color": MUTED, "va": "center_baseline"}
    before = page.text(left, middle, low, **style) + 0.08
    after = page.text(left + width, middle, high, ha="right", **style) + 0.08
    bar = page.axes(left + before, middle - 0.035, width - before - after, 0.07)
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=COLORMAP, aspect="auto")


def draw_tissue(axes: Axes, image: NDArray[np.uint8], extent: Window, window: Window) -> None:
    """Draw an image [h, w, 3] that covers `extent`, and show the part in `window`."""
    left, right, top, bottom = extent
    axes.imshow(image, extent=(left, right, bottom, top), interpolation="antialiased", aspect="auto")
    axes.set_xlim(window[0], window[1])
    axes.set_ylim(window[3], window[2])


def draw_spots(axes: Axes, xy_px: NDArray[np.float64], diameter: float, **style: Any) -> EllipseCollection:
    """Draw spots as discs around xy_px [n, 2], level-0 px; `style`: options of EllipseCollection."""
    sizes = np.full(len(xy_px), diameter)
    angles = np.zeros(len(xy_px))
    spots = EllipseCollection(
        sizes, sizes, angles, units="xy", offsets=xy_px, offset_transform=axes.transData, **style
    )
    axes.add_collection(spots, autolim=False)
    return spots


def _draw_cells(
    axes: Axes,
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
        return _draw_cells(axes, xy_px, values, 2 * side, pixel, limits)
    counts = np.bincount(row * columns + column, minlength=columns * rows)
    sums = np.bincount(row * columns + column, values, minlength=columns * rows)
    with np.errstate(invalid="ignore"):
        means = (sums / counts).reshape(rows, columns)
    xlim, ylim = axes.get_xlim(), axes.get_ylim()
    axes.imshow(
        means,
        extent=(left, left + columns * side, top + rows * side, top),
        cmap=COLORMAP,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
        aspect="auto",
    )
    axes.set_xlim(xlim)  # imshow changes the limits
    axes.set_ylim(ylim)


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
    gray = image @ np.array([0.299, 0.587, 0.114], np.float32)
    mixed = 0.75 * gray[..., None] + 0.25 * image
    return np.asarray(255 - (255 - mixed) * 0.4, np.uint8)


def _round_length(length: float) -> float:
    """Return the largest of 1, 2, 5 x 10ⁿ up to `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1, 2, 5) if step * power <= length * (1 + 1e-9))


def _format_limit(value: float, span: float) -> str:
    """Format a limit of a color scale with two digits of its span."""
    decimals = 1 - math.floor(math.log10(span)) if span > 0 else 2
    text = f"{value:.1e}" if decimals > 4 or abs(value) >= 1e5 else f"{value:.{max(0, decimals)}f}"
    return text.replace("-", "−")
