"""One picture: the held-out slide, what was predicted for it, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mclst.runtime.page import DPI, INK, QUIET
from mclst.runtime.pictures import COLOURS
from mclst.runtime.publish import write_whole

WIDTH, MARGIN, GAP = 13.33, 0.45, 0.14
HEAD, CAPTION, FOOT = 0.8, 0.34, 0.42
ROW_NAME = 0.4
"""Inches: the page, its margins, and the strip for the words "predicted" and "measured"."""


@dataclass(frozen=True)
class Panel:
    """One gene, predicted and measured.

    correlation: Pearson r between the two. predicted, measured: float [n], normalised.
    """

    gene: str
    correlation: float
    predicted: NDArray[np.float32]
    measured: NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """The part of the slide that is shown, level-0 px."""

    left: float
    top: float
    wide: float
    high: float


class _Page:
    """A figure on which things are placed in inches from the top left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, wide: float, high: float, shown: Window) -> Axes:
        """Frameless axes in level-0 px of the window."""
        place = (left / WIDTH, 1 - (top + high) / self.height, wide / WIDTH, high / self.height)
        axes = self.figure.add_axes(place)
        axes.set_axis_off()
        axes.set_xlim(shown.left, shown.left + shown.wide)
        axes.set_ylim(shown.top + shown.high, shown.top)
        return axes

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Words with their baseline at (left, top)."""
        place = (left / WIDTH, 1 - top / self.height)
        self.figure.text(*place, words, **{"color": INK, "parse_math": False, **style})

    def png(self) -> bytes:
        """The page as a PNG file's content."""
        content = BytesIO()
        self.figure.savefig(content, format="png", metadata={"Software": "mclst"})
        return content.getvalue()


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
    room = WIDTH - 2 * MARGIN - ROW_NAME - (len(panels) - 1) * GAP
    side = (room - CAPTION * shown.wide / shown.high) / (len(panels) + 2)  # the slide is as high as both rows
    tall = side * shown.high / shown.wide
    first, second = HEAD + CAPTION, HEAD + 2 * CAPTION + tall
    large = 2 * tall + CAPTION
    page = _Page(second + tall + FOOT)
    page.text(MARGIN, 0.5, title, size=18, weight="bold")
    slide = page.axes(MARGIN, first, large * shown.wide / shown.high, large, shown)
    edges = (0.0, image.shape[1] / image_scale, image.shape[0] / image_scale, 0.0)
    slide.imshow(image, extent=edges, interpolation="antialiased", aspect="auto")
    slide.set_xlim(shown.left, shown.left + shown.wide)
    slide.set_ylim(shown.top + shown.high, shown.top)
    start = MARGIN + large * shown.wide / shown.high + ROW_NAME
    for top, name in ((first, "Predicted"), (second, "Measured")):
        turned: dict[str, Any] = {"rotation": 90, "va": "center", "ha": "center", "weight": "bold"}
        page.text(start - 0.14, top + tall / 2, name, size=11, **turned)
    for column, panel in enumerate(panels):
        left = start + column * (side + GAP)
        page.text(left + side / 2, first - 0.08, panel.gene, size=11, weight="bold", ha="center")
        told = f"r = {panel.correlation:.2f}"
        page.text(left + side / 2, second - 0.08, told, size=10, color=QUIET, ha="center")
        for top, values in ((first, panel.predicted), (second, panel.measured)):
            _spots(page.axes(left, top, side, tall, shown), values, xy_px, spot_px)
    note = (
        "Made-up tissue and counts.   Of each programme the gene with the highest r, Pearson correlation over the spots.   "
        "Dark is more; each map is coloured from its own 1st to 99th percentile."
    )
    page.text(MARGIN, page.height - 0.16, note, size=9, color=QUIET)
    write_whole(out, page.png())


def _window(xy_px: NDArray[np.float64], spot_px: float) -> Window:
    left, top = xy_px.min(axis=0) - 1.5 * spot_px
    right, bottom = xy_px.max(axis=0) + 1.5 * spot_px
    return Window(float(left), float(top), float(right - left), float(bottom - top))


def _spots(axes: Axes, values: NDArray[np.float32], xy_px: NDArray[np.float64], diameter: float) -> None:
    seen = np.isfinite(values)
    size = np.full(int(seen.sum()), diameter)
    low, high = np.percentile(values[seen], [1, 99]) if seen.any() else (0.0, 1.0)
    spots = EllipseCollection(
        size,
        size,
        np.zeros(len(size)),
        units="xy",
        offsets=xy_px[seen],
        offset_transform=axes.transData,
        cmap=COLOURS,
        linewidths=0,
        clim=(float(low), float(high)),
    )
    spots.set_array(values[seen])
    axes.add_collection(spots, autolim=False)
