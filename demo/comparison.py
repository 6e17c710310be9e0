"""One picture: the held-out slide, what was predicted for it, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.atomic import write_whole
from mclst.runtime.report.figures.colors import COLORMAP, usual_limits
from mclst.runtime.report.figures.contact_sheet import Window, add_spots, show_tissue
from mclst.runtime.report.figures.layout import QUIET, WIDTH, Page

MARGIN, GAP = 0.45, 0.14
HEAD, CAPTION, FOOT = 0.8, 0.34, 0.42
ROW_NAME = 0.4
"""Inches: margins, gaps, and the strip for the words "predicted" and "measured"."""


@dataclass(frozen=True)
class Panel:
    """One gene, predicted and measured.

    correlation: Pearson r between the two. predicted, measured: float [n], normalised.
    """

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
    """Draw the slide beside two rows of maps, predicted above measured, to the PNG `out`.

    image: uint8 [h, w, 3]; image_scale: image px per level-0 px. xy_px: float64 [n, 2] spot centres; spot_px: their
    diameter; level-0 px. Colours run from the 1st to the 99th percentile of each map by itself: a prediction, being
    an average of neighbours, spans less than the measurement.
    """
    shown = _window(xy_px, spot_px)
    aspect = (shown[1] - shown[0]) / (shown[3] - shown[2])
    room = WIDTH - 2 * MARGIN - ROW_NAME - (len(panels) - 1) * GAP
    side = (room - CAPTION * aspect) / (len(panels) + 2)  # the slide is as high as both rows
    tall = side / aspect
    first, second = HEAD + CAPTION, HEAD + 2 * CAPTION + tall
    large = 2 * tall + CAPTION
    page = Page(second + tall + FOOT)
    page.text(MARGIN, 0.5, title, size=18, weight="bold")
    edges = (0.0, image.shape[1] / image_scale, 0.0, image.shape[0] / image_scale)
    show_tissue(page.axes(MARGIN, first, large * aspect, large), image, edges, shown)
    start = MARGIN + large * aspect + ROW_NAME
    for top, name in ((first, "Predicted"), (second, "Measured")):
        turned: dict[str, Any] = {"rotation": 90, "va": "center", "ha": "center", "weight": "bold"}
        page.text(start - 0.14, top + tall / 2, name, size=11, **turned)
    for column, panel in enumerate(panels):
        left = start + column * (side + GAP)
        page.text(left + side / 2, first - 0.08, panel.gene, size=11, weight="bold", ha="center")
        told = f"r = {panel.correlation:.2f}"
        page.text(left + side / 2, second - 0.08, told, size=10, color=QUIET, ha="center")
        for top, values in ((first, panel.predicted), (second, panel.measured)):
            axes = page.axes(left, top, side, tall)
            axes.set_xlim(shown[0], shown[1])
            axes.set_ylim(shown[3], shown[2])
            seen = np.isfinite(values)
            style = {"cmap": COLORMAP, "linewidths": 0, "clim": usual_limits(values[seen])}
            add_spots(axes, xy_px[seen], spot_px, **style).set_array(values[seen])
    note = (
        "Made-up tissue and counts.   Of each programme the gene with the highest r, Pearson correlation over the spots.   "
        "Dark is more; each map is coloured from its own 1st to 99th percentile."
    )
    page.text(MARGIN, page.height - 0.16, note, size=9, color=QUIET)
    write_whole(out, page.content())


def _window(xy_px: NDArray[np.float64], spot_px: float) -> Window:
    left, top = xy_px.min(axis=0) - 1.5 * spot_px
    right, bottom = xy_px.max(axis=0) + 1.5 * spot_px
    return float(left), float(right), float(top), float(bottom)
