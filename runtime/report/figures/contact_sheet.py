"""A contact sheet of an expression map: genes over the tissue, the most spatially structured ones or those asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mclst.runtime.atomic import write_whole
from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.morans_i import (
    NEIGHBOURS,
    blank_rows,
    morans_i,
    most_structured_first,
)
from mclst.runtime.expression_map.reader import Map, open_map
from mclst.runtime.expression_map.writer import shrink, usual_spot_diameter
from mclst.runtime.report.figures.colors import COLORMAP, usual_limits
from mclst.runtime.report.figures.layout import DPI, INK, KINDS, QUIET, Box, GenesPage, Page

PANELS = 8
MOST_ELLIPSES = 20_000
"""More spots than this are drawn as an image of squares: a million ellipses would take minutes and gigabytes."""
MOST_CELLS = 16_000_000
Window = tuple[float, float, float, float]
"""Level-0 px: left, right, top, bottom."""
LEAST_PX = 1.6
"""Spots smaller than this on the sheet could not be seen; they are drawn this large."""


@dataclass(frozen=True)
class Sheet:
    """What a contact sheet is drawn from.

    title: the slide's name. genes: [G]. expression: float32 [n, G], an array or an HDF5 dataset, NaN where a tile was
    unreadable.
    xy_px: float64 [n, 2] spot centres, level-0 px. spot_diameter_px: level-0 px, or None: half the usual distance.
    image: uint8 [h, w, 3]. image_scale: image px per level-0 px. mpp: µm per level-0 px, or None: no scale bar.
    """

    title: str
    genes: Sequence[str]
    expression: NDArray[np.float32] | h5py.Dataset
    xy_px: NDArray[np.float64]
    image: NDArray[np.uint8]
    image_scale: float
    spot_diameter_px: float | None = None
    mpp: float | None = None


def contact_sheet(
    map_path: Path,
    out: Path,
    *,
    genes: Sequence[str] | None = None,
    panels: int = PANELS,
    mpp: float | None = None,
) -> tuple[tuple[str, float], ...]:
    """Draw a map's contact sheet to `out`, whole or not at all; (gene, Moran's I) as drawn.

    out: a PNG, PDF or SVG by its ending. genes: these, in this order; None: the `panels` genes of largest Moran's I.
    mpp: µm per level-0 px, for a scale bar; None: what the map says.
    Raises InputError where the map has no tissue image or lacks a named gene; OutputError where `out` cannot be written.
    """
    with open_map(map_path) as found:
        return picture_map(found, out, genes=genes, panels=panels, mpp=mpp)


def picture_map(
    found: Map,
    out: Path,
    *,
    genes: Sequence[str] | None = None,
    panels: int = PANELS,
    mpp: float | None = None,
    dpi: int = DPI,
) -> tuple[tuple[str, float], ...]:
    """Draw an open map as `contact_sheet` does; dpi: dots per inch of a PNG, and of the tissue in a PDF or SVG."""
    sheet = Sheet(
        title=found.title,
        genes=found.genes,
        expression=found.expression,
        xy_px=found.xy_px,
        image=found.image,
        image_scale=found.image_scale,
        spot_diameter_px=found.spot_diameter_px,
        mpp=found.mpp if mpp is None else mpp,
    )
    return draw_sheet(sheet, out, genes=genes, panels=panels, moran=found.morans_i, dpi=dpi)


def draw_sheet(
    sheet: Sheet,
    out: Path,
    *,
    genes: Sequence[str] | None = None,
    panels: int = PANELS,
    moran: NDArray[np.float64] | None = None,
    dpi: int = DPI,
) -> tuple[tuple[str, float], ...]:
    """Draw a contact sheet as `contact_sheet` does, from arrays; moran: Moran's I of the genes [G], where known."""
    if missing := [gene for gene in genes or () if gene not in set(sheet.genes)]:
        raise InputError(f"{sheet.title} has no gene {missing[0]}; name genes of the map")
    moran = morans_i(sheet.expression, sheet.xy_px) if moran is None else moran
    if genes is None:
        chosen = [int(g) for g in most_structured_first(moran)[:panels]]
    else:
        place = {gene: g for g, gene in enumerate(sheet.genes)}
        chosen = [place[gene] for gene in genes]
    kind = out.suffix.lstrip(".").lower()
    write_whole(out, _draw(sheet, chosen, moran).content(kind if kind in KINDS else "png", dpi))
    return tuple((sheet.genes[g], float(moran[g])) for g in chosen)


def _draw(sheet: Sheet, chosen: Sequence[int], moran: NDArray[np.float64]) -> GenesPage:
    diameter = sheet.spot_diameter_px or usual_spot_diameter(sheet.xy_px)
    window = _window(sheet, diameter)
    page = GenesPage(len(chosen), (window[1] - window[0]) / (window[3] - window[2]))
    image, extent = _crop(sheet, window)
    blank = blank_rows(sheet.expression)
    _draw_words(page, sheet, int(np.count_nonzero(blank)))
    show_tissue(page.axes(*page.tissue), image, extent, window)
    page.text(page.margin, page.tissue[1] - 0.09, "Tissue", size=12, weight="bold")
    if sheet.mpp is not None:
        _draw_scale(page, page.tissue, (window[1] - window[0]) * sheet.mpp)
    faded = _fade(shrink(image, 1.0, math.ceil(max(page.panel, page.picture) * DPI))[0])
    shown = max(diameter, LEAST_PX * (window[1] - window[0]) / (page.panel * DPI))
    for place, gene in enumerate(chosen):
        box = page.box(place)
        axes = page.axes(*box)
        show_tissue(axes, faded, extent, window)
        values = np.asarray(sheet.expression[:, gene])[~blank]
        limits = usual_limits(values)
        if len(sheet.xy_px) > MOST_ELLIPSES:
            pixel = (window[1] - window[0]) / (page.panel * DPI)
            _add_cells(axes, sheet.xy_px[~blank], values, diameter, pixel, limits)
        else:
            add_spots(axes, sheet.xy_px[blank], shown, facecolors="none", edgecolors=QUIET, linewidths=0.5)
            spots = add_spots(axes, sheet.xy_px[~blank], shown, cmap=COLORMAP, linewidths=0, clim=limits)
            spots.set_array(values)
        told = "constant" if np.isnan(moran[gene]) else f"I = {moran[gene]:.2f}"
        taken = page.text(box[0] + box[2], box[1] - 0.09, told, size=10, color=QUIET, ha="right")
        room = box[2] - taken - 0.1
        page.text(box[0], box[1] - 0.09, sheet.genes[gene], room, size=12, weight="bold")
        _draw_bar(page, box, limits)
    return page


def _draw_words(page: GenesPage, sheet: Sheet, blank: int) -> None:
    room = page.width - 2 * page.margin
    page.text(page.margin, 0.58, sheet.title, room, size=20, weight="bold")
    told = [f"{len(sheet.xy_px):,} spots", f"{len(sheet.genes):,} genes"]
    if blank:
        told.append(f"{blank:,} without a prediction (rings)")
    page.text(page.margin, 0.86, "  ·  ".join(told), room, size=11, color=QUIET)
    note = (
        "Predicted expression, coloured from each gene's 1st to 99th percentile over the spots.   "
        f"I: Moran's I over the {NEIGHBOURS} nearest spots."
    )
    page.text(page.margin, page.height - 0.28, note, size=9, color=QUIET)


def _draw_scale(page: Page, box: Box, across_um: float) -> None:
    length_um = _round_length(across_um / 3)
    length = box[2] * length_um / across_um
    bar = page.axes(box[0], box[1] + box[3] + 0.13, length, 0.035)
    bar.add_patch(Rectangle((0, 0), 1, 1, transform=bar.transAxes, color=INK))
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    page.text(box[0] + length + 0.08, box[1] + box[3] + 0.15, label, size=9, va="center_baseline")


def _draw_bar(page: Page, box: Box, limits: tuple[float, float]) -> None:
    left, top, width, height = box
    middle = top + height + 0.15
    low, high = (_number(limit, limits[1] - limits[0]) for limit in limits)
    style: dict[str, Any] = {"size": 9, "color": QUIET, "va": "center_baseline"}
    before = page.text(left, middle, low, **style) + 0.08
    after = page.text(left + width, middle, high, ha="right", **style) + 0.08
    bar = page.axes(left + before, middle - 0.035, width - before - after, 0.07)
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=COLORMAP, aspect="auto")


def show_tissue(axes: Axes, image: NDArray[np.uint8], extent: Window, window: Window) -> None:
    """Draw an image [h, w, 3] that lies at `extent`, as far as `window` shows it; level-0 px."""
    left, right, top, bottom = extent
    axes.imshow(image, extent=(left, right, bottom, top), interpolation="antialiased", aspect="auto")
    axes.set_xlim(window[0], window[1])
    axes.set_ylim(window[3], window[2])


def add_spots(axes: Axes, xy_px: NDArray[np.float64], diameter: float, **style: Any) -> EllipseCollection:
    """Draw spots as discs of `diameter` around xy_px [n, 2], level-0 px; `style`: as of an EllipseCollection."""
    sizes = np.full(len(xy_px), diameter)
    spots = EllipseCollection(
        sizes,
        sizes,
        np.zeros(len(xy_px)),
        units="xy",
        offsets=xy_px,
        offset_transform=axes.transData,
        **style,
    )
    axes.add_collection(spots, autolim=False)
    return spots


def _add_cells(
    axes: Axes,
    xy_px: NDArray[np.float64],
    values: NDArray[np.float32],
    side: float,
    pixel: float,
    limits: tuple[float, float],
) -> None:
    """Draw spots as squares of `side` px, or, where these are smaller than a pixel of the sheet, means over several."""
    if not len(xy_px):
        return
    side *= max(1, math.ceil(pixel / side))
    left, top = xy_px.min(axis=0) - side / 2
    column, row = np.floor((xy_px - (left, top)) / side).astype(np.int64).T
    columns, rows = int(column.max()) + 1, int(row.max()) + 1
    if columns * rows > MOST_CELLS:  # spots far apart for their size: never more cells than can be seen
        return _add_cells(axes, xy_px, values, 2 * side, pixel, limits)
    counts = np.bincount(row * columns + column, minlength=columns * rows)
    sums = np.bincount(row * columns + column, values, minlength=columns * rows)
    with np.errstate(invalid="ignore"):
        means = (sums / counts).reshape(rows, columns)
    extent = (left, left + columns * side, top + rows * side, top)
    box = axes.get_xlim(), axes.get_ylim()
    axes.imshow(
        means,
        extent=extent,
        cmap=COLORMAP,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
        aspect="auto",
    )
    axes.set_xlim(box[0])
    axes.set_ylim(box[1])


def _window(sheet: Sheet, diameter: float) -> Window:
    """Where the spots lie, with a margin that stays on the image; level-0 px: left, right, top, bottom."""
    sides = []
    for axis, image_px in ((0, sheet.image.shape[1]), (1, sheet.image.shape[0])):
        low, high = float(sheet.xy_px[:, axis].min()), float(sheet.xy_px[:, axis].max())
        margin = max(1.5 * diameter, 0.04 * (high - low))
        sides += [
            min(low - diameter / 2, max(low - margin, 0.0)),
            max(high + diameter / 2, min(high + margin, image_px / sheet.image_scale)),
        ]
    left, right, top, bottom = sides
    across = max(0.0, (bottom - top) / 3 - (right - left)) / 2
    along = max(0.0, (right - left) / 3 - (bottom - top)) / 2
    return left - across, right + across, top - along, bottom + along


def _crop(sheet: Sheet, window: Window) -> tuple[NDArray[np.uint8], Window]:
    """The part of the image under `window` and its own left, right, top, bottom in level-0 px."""
    height, width = sheet.image.shape[:2]
    scaled = [side * sheet.image_scale for side in window]
    left, right = max(0, math.floor(scaled[0])), min(width, math.ceil(scaled[1]))
    top, bottom = max(0, math.floor(scaled[2])), min(height, math.ceil(scaled[3]))
    if left >= right or top >= bottom:
        raise InputError(f"{sheet.title}: no spot lies on its tissue image; check the spots' coordinates")
    x0, x1, y0, y1 = (side / sheet.image_scale for side in (left, right, top, bottom))
    return sheet.image[top:bottom, left:right], (x0, x1, y0, y1)


def _fade(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image paler and greyer, so that the spots' colours are the only ones."""
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    mixed = 0.75 * grey[..., None] + 0.25 * image
    return np.asarray(255 - (255 - mixed) * 0.4, np.uint8)


def _round_length(about: float) -> float:
    """The largest of 1, 2, 5 x 10ⁿ that is not above `about`."""
    power = 10.0 ** math.floor(math.log10(about))
    return max(step * power for step in (1, 2, 5) if step * power <= about * (1 + 1e-9))


def _number(value: float, span: float) -> str:
    """`value` to the first two digits that tell it from another `span` away."""
    decimals = 1 - math.floor(math.log10(span)) if span > 0 else 2
    text = f"{value:.1e}" if decimals > 4 or abs(value) >= 1e5 else f"{value:.{max(0, decimals)}f}"
    return text.replace("-", "−")
