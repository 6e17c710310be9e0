"""Figure of the held-out slide with predicted and measured expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.atomic import write_atomically
from mclst.runtime.report.figures.colors import MUTED, color_limits, color_spots
from mclst.runtime.report.figures.layout import WIDTH, Window
from mclst.runtime.report.figures.raster import RasterPage

MARGIN, GAP = 0.45, 0.14
HEAD, CAPTION, FOOT = 0.8, 0.34, 0.42
ROW_NAME = 0.4
"""Inches: width of the strip for row names."""


@dataclass(frozen=True)
class Panel:
    """One gene: predicted and measured expression, float [n], normalized, and their Pearson r."""

    gene: str
    correlation: float
    predicted: NDArray[np.float32]
    measured: NDArray[np.float32]


def draw_comparison(
    out: Path,
    title: str,
    image: NDArray[np.uint8],
    image_scale: float,
    xy_px: NDArray[np.float64],
    spot_px: float,
    panels: Sequence[Panel],
) -> None:
    """Draw the slide next to two rows of maps, predicted above measured, to the PNG `out`.

    image: uint8 [h, w, 3]; image_scale: image px per level-0 px. xy_px: float64 [n, 2] spot centers; spot_px:
    their diameter; level-0 px. Each map has its own color range, the 1st to 99th percentile: a prediction
    averages neighbors and spans less than the measurement.
    """
    window = _window(xy_px, spot_px)
    aspect = (window[1] - window[0]) / (window[3] - window[2])
    available = WIDTH - 2 * MARGIN - ROW_NAME - (len(panels) - 1) * GAP
    panel_width = (available - CAPTION * aspect) / (len(panels) + 2)  # the slide is as high as both rows
    panel_height = panel_width / aspect
    first, second = HEAD + CAPTION, HEAD + 2 * CAPTION + panel_height
    slide_height = 2 * panel_height + CAPTION
    page = RasterPage(second + panel_height + FOOT)
    page.text(MARGIN, 0.5, title, size=18, bold=True)
    edges = (0.0, image.shape[1] / image_scale, 0.0, image.shape[0] / image_scale)
    page.picture([(MARGIN, first, slide_height * aspect, slide_height)], image, edges, window)
    start = MARGIN + slide_height * aspect + ROW_NAME
    for top, name in ((first, "Predicted"), (second, "Measured")):
        page.vertical_text(start - 0.06, top + panel_height / 2, name, size=11)
    for column, panel in enumerate(panels):
        left = start + column * (panel_width + GAP)
        page.text(left + panel_width / 2, first - 0.08, panel.gene, size=11, bold=True, align="center")
        label = f"r = {panel.correlation:.2f}"
        page.text(left + panel_width / 2, second - 0.08, label, size=10, color=MUTED, align="center")
        for top, values in ((first, panel.predicted), (second, panel.measured)):
            finite = np.isfinite(values)
            colors = color_spots(values[finite], color_limits(values[finite]))
            page.spots([(left, top, panel_width, panel_height)], window, xy_px[finite], spot_px, [colors])
    note = (
        "Synthetic tissue and counts.   The gene of each program with the highest Pearson r over the spots.  "
        " Darker is higher; each map has its own color range, 1st to 99th percentile."
    )
    page.text(MARGIN, page.height - 0.16, note, size=9, color=MUTED)
    write_atomically(out, page.content())


def _window(xy_px: NDArray[np.float64], spot_px: float) -> Window:
    left, top = xy_px.min(axis=0) - 1.5 * spot_px
    right, bottom = xy_px.max(axis=0) + 1.5 * spot_px
    return float(left), float(right), float(top), float(bottom)
