"""Pages that maps are drawn on, laid out in inches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mclst.runtime.report.figures.style import INK, figure_bytes

DPI = 200
WIDTH = 13.33
"""Inches: the width of a 16:9 slide."""
Box = tuple[float, float, float, float]
"""Inches: left, top, width, height."""


class Page:
    """A figure whose parts are placed in inches from its top left corner; height: inches."""

    def __init__(self, height: float) -> None:
        self.width, self.height = WIDTH, height
        self.figure = Figure(figsize=(self.width, height), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes without a frame."""
        across, up = self.width, self.height
        axes = self.figure.add_axes((left / across, 1 - (top + height) / up, width / across, height / up))
        axes.set_axis_off()
        return axes

    def text(
        self, left: float, top: float, content: str, max_width: float | None = None, **style: Any
    ) -> float:
        """Draw literal text with its baseline at (left, top), cut to `max_width`; return its width."""
        position = (left / self.width, 1 - top / self.height)
        text = self.figure.text(*position, content, **{"color": INK, "parse_math": False, **style})
        renderer = cast(Any, self.canvas).get_renderer()
        with _ignore_missing_glyphs():
            while True:
                width = float(text.get_window_extent(renderer).width) / DPI
                if width <= (max_width or math.inf) or len(content) <= 1:
                    return width
                content = content[:-1]
                text.set_text(content + "…")

    def content(self, kind: str = "png", dpi: int = DPI) -> bytes:
        """Render the page as `figure_bytes` does; text stays text in a PDF or SVG."""
        with _ignore_missing_glyphs(), rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
            return figure_bytes(self.figure, kind, dpi)


class GenesPage(Page):
    """A large panel for the tissue and equal panels for the genes, as large as a 16:9 page allows.

    genes: number of gene panels. aspect: width / height of a panel.
    """

    target_height, margin, head, foot = 7.5, 0.5, 1.0, 0.55
    gap, caption, strip = 0.28, 0.3, 0.3

    def __init__(self, genes: int, aspect: float) -> None:
        self.block = 2 if genes >= 4 else 1  # cells along a side of the tissue panel

        def size(columns: int) -> tuple[float, float]:
            panel = (WIDTH - 2 * self.margin - (columns - 1) * self.gap) / columns
            rows = max(self.block, math.ceil((genes + self.block**2) / columns))
            return panel, self.head + self.foot + rows * (panel / aspect + self.caption + self.strip)

        def visible_width(columns: int) -> float:
            panel, height = size(columns)
            return panel * min(1.0, self.target_height / height)

        self.columns = max(range(self.block + 1, max(self.block, genes) + 2), key=visible_width)
        self.panel, height = size(self.columns)
        super().__init__(height)
        self.panel_height = self.panel / aspect
        row = self.panel_height + self.caption + self.strip
        width = min(
            self.block * (self.panel + self.gap) - self.gap,
            aspect * (self.block * row - self.caption - self.strip),
        )
        self.tissue: Box = (self.margin, self.head + self.caption, width, width / aspect)
        cells = (divmod(cell, self.columns) for cell in range(self.columns * (genes + self.block**2)))
        self.cells = [(row, column) for row, column in cells if max(row, column) >= self.block][:genes]

    def box(self, index: int) -> Box:
        """Return the image area of a gene panel."""
        row, column = self.cells[index]
        top = self.head + self.caption + row * (self.panel_height + self.caption + self.strip)
        return self.margin + column * (self.panel + self.gap), top, self.panel, self.panel_height


@contextmanager
def _ignore_missing_glyphs() -> Iterator[None]:
    """Titles may use scripts that the font lacks; matplotlib draws boxes for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield
