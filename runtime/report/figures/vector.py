"""Pages as PDF or SVG, by matplotlib; text stays text."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mclst.runtime.report.figures.colors import INK
from mclst.runtime.report.figures.layout import DPI, Box, Page, Window
from mclst.runtime.report.figures.style import figure_bytes


class VectorPage(Page):
    """A page of shapes; dpi: of the tissue in it."""

    def __init__(self, height: float, dpi: int = DPI) -> None:
        super().__init__(height)
        self.dpi = dpi
        self._figure = Figure(figsize=(self.width, height), dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._axes: dict[Box, Axes] = {}

    def text(
        self,
        left: float,
        baseline: float,
        content: str,
        max_width: float = math.inf,
        *,
        size: float,
        bold: bool = False,
        color: str = INK,
        align: Literal["left", "center", "right"] = "left",
    ) -> float:
        """Draw text; see Page."""
        weight = "bold" if bold else "normal"
        text = self._figure.text(
            left / self.width, 1 - baseline / self.height, content,
            size=size, weight=weight, color=color, ha=align, parse_math=False,
        )  # fmt: skip
        renderer = cast(Any, self._canvas).get_renderer()
        with _ignore_missing_glyphs():
            while True:
                width = float(text.get_window_extent(renderer).width) / DPI
                if width <= max_width or len(content) <= 1:
                    return width
                content = content[:-1]
                text.set_text(content + "…")

    def rectangle(self, box: Box, color: str) -> None:
        """Fill a box; see Page."""
        axes = self._in(box)
        axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, color=color))

    def picture(
        self,
        boxes: Sequence[Box],
        pixels: NDArray[np.uint8],
        extent: Window,
        window: Window,
        *,
        smooth: bool = True,
    ) -> None:
        """Show a part of a picture; see Page."""
        left, right, top, bottom = extent
        for axes in map(self._in, boxes):
            way = "antialiased" if smooth else "nearest"
            axes.imshow(pixels, extent=(left, right, bottom, top), interpolation=way, aspect="auto")
            _show(axes, window)

    def spots(
        self,
        boxes: Sequence[Box],
        window: Window,
        xy_px: NDArray[np.float64],
        diameter: float,
        colors: Sequence[NDArray[np.uint8]] | str,
    ) -> None:
        """Draw discs or rings; see Page."""
        sizes, angles = np.full(len(xy_px), diameter), np.zeros(len(xy_px))
        for number, box in enumerate(boxes):
            axes = self._in(box)
            style: dict[str, Any] = (
                {"facecolors": "none", "edgecolors": colors, "linewidths": 0.5}
                if isinstance(colors, str)
                else {"facecolors": colors[number] / 255, "linewidths": 0}
            )
            spots = EllipseCollection(
                sizes, sizes, angles, units="xy", offsets=xy_px, offset_transform=axes.transData, **style
            )
            axes.add_collection(spots, autolim=False)
            _show(axes, window)

    def content(self, kind: str) -> bytes:
        """Render the page as `figure_bytes` does."""
        with _ignore_missing_glyphs(), rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
            return figure_bytes(self._figure, kind, self.dpi)

    def _in(self, box: Box) -> Axes:
        """The axes of a box, without a frame."""
        if box not in self._axes:
            left, top, width, height = box
            across, up = self.width, self.height
            place = (left / across, 1 - (top + height) / up, width / across, height / up)
            self._axes[box] = self._figure.add_axes(place)
            self._axes[box].set_axis_off()
        return self._axes[box]


def _show(axes: Axes, window: Window) -> None:
    axes.set_xlim(window[0], window[1])
    axes.set_ylim(window[3], window[2])


@contextmanager
def _ignore_missing_glyphs() -> Iterator[None]:
    """Titles may use scripts that the font lacks; matplotlib draws boxes for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield
