"""One picture: the held-out slide, what was predicted for it, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mclst.runtime.page import DPI, INK, QUIET
from mclst.runtime.pictures import COLOURS
from mclst.runtime.publish import write_whole

WIDTH, MARGIN, GAP = 13.33, 0.45, 0.16
HEAD, CAPTION, FOOT = 0.95, 0.3, 0.5


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
    extent = (0.0, image.shape[1] / image_scale, image.shape[0] / image_scale, 0.0)
    aspect = image.shape[1] / image.shape[0]
    side = (WIDTH - 2 * MARGIN - GAP * (len(panels) + 1) - 0.25) / (len(panels) + 2 + 0.001)
    tall = side / aspect
    height = HEAD + 2 * (tall + CAPTION) + FOOT
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def place(left: float, top: float, wide: float, high: float) -> Axes:
        axes = figure.add_axes((left / WIDTH, 1 - (top + high) / height, wide / WIDTH, high / height))
        axes.set_axis_off()
        axes.set_xlim(extent[0], extent[1])
        axes.set_ylim(extent[2], extent[3])
        return axes

    def write(
        left: float, top: float, words: str, size: float, color: str = INK, weight: str = "normal"
    ) -> None:
        figure.text(
            left / WIDTH, 1 - top / height, words, size=size, color=color, weight=weight, parse_math=False
        )

    write(MARGIN, 0.55, title, 18, weight="bold")
    large = 2 * tall + CAPTION
    slide = place(MARGIN, HEAD + CAPTION, large * aspect, large)
    slide.imshow(image, extent=extent, interpolation="antialiased")
    write(MARGIN, HEAD + CAPTION - 0.09, "Slide", 12, weight="bold")
    start = MARGIN + large * aspect + GAP + 0.25
    for column, panel in enumerate(panels):
        left = start + column * (side + GAP)
        for row, values in enumerate((panel.predicted, panel.measured)):
            top = HEAD + CAPTION + row * (tall + CAPTION)
            axes = place(left, top, side, tall)
            _spots(axes, values, xy_px, spot_px)
        write(left, HEAD + CAPTION - 0.09, f"{panel.gene}, predicted", 11, weight="bold")
        write(left, HEAD + 2 * CAPTION + tall - 0.09, f"measured   r = {panel.correlation:.2f}", 11, QUIET)
    note = (
        "Made-up tissue and counts. Dark is more; each map is coloured from its own 1st to 99th percentile."
    )
    write(MARGIN, height - 0.22, note, 9, QUIET)
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": "mclst"})
    write_whole(out, content.getvalue())


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
