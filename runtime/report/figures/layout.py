"""A page that maps are drawn on, in inches; the contact sheet's: where the tissue, the genes and their captions stand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, cast

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, QUIET = "#1c1c1e", "#6e6e73"
DPI = 200
WIDTH = 13.33
"""Inches: of a 16:9 slide."""
KINDS = ("png", "pdf", "svg")
Box = tuple[float, float, float, float]
"""Inches: left, top, width, height."""


class Page:
    """A figure on which things are placed in inches from its top left corner; height: inches."""

    def __init__(self, height: float) -> None:
        self.width, self.height = WIDTH, height
        self.figure = Figure(figsize=(self.width, height), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes without a frame."""
        across, up = self.width, self.height
        axes = self.figure.add_axes((left / across, 1 - (top + height) / up, width / across, height / up))
        axes.set_axis_off()
        return axes

    def text(self, left: float, top: float, words: str, room: float | None = None, **style: Any) -> float:
        """Text with its baseline at (left, top), cut to `room` inches, never read as mathematics; its width."""
        place = (left / self.width, 1 - top / self.height)
        text = self.figure.text(*place, words, **{"color": INK, "parse_math": False, **style})
        renderer = cast(Any, self.canvas).get_renderer()
        with _any_script():
            while (wide := text.get_window_extent(renderer).width / DPI) > (room or math.inf) and len(
                words
            ) > 1:
                words = words[:-1]
                text.set_text(words + "…")
        return float(wide)

    def content(self, kind: str = "png", dpi: int = DPI) -> bytes:
        """The page as a file's content; kind: one of KINDS. Letters stay letters in a PDF or SVG."""
        content = BytesIO()
        metadata = {
            "png": {"Software": "mclst"},
            "pdf": {"Creator": "mclst", "CreationDate": None},
            "svg": {"Creator": "mclst", "Date": None},
        }[kind]
        with _any_script(), rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
            self.figure.savefig(content, format=kind, dpi=dpi, metadata=metadata)
        return content.getvalue()


class GenesPage(Page):
    """Equal panels for the genes and a large one for the tissue."""

    height_wished, margin, head, foot = 7.5, 0.5, 1.0, 0.55
    gap, caption, strip = 0.28, 0.3, 0.3

    def __init__(self, genes: int, aspect: float) -> None:
        """Room for `genes` pictures of width / height `aspect`, as large as they can be on a 16:9 page."""
        self.block = 2 if genes >= 4 else 1  # cells along a side of the tissue's picture

        def size(columns: int) -> tuple[float, float]:
            panel = (WIDTH - 2 * self.margin - (columns - 1) * self.gap) / columns
            rows = max(self.block, math.ceil((genes + self.block**2) / columns))
            return panel, self.head + self.foot + rows * (panel / aspect + self.caption + self.strip)

        def seen(columns: int) -> float:
            panel, height = size(columns)
            return panel * min(1.0, self.height_wished / height)

        self.columns = max(range(self.block + 1, max(self.block, genes) + 2), key=seen)
        self.panel, height = size(self.columns)
        super().__init__(height)
        self.picture = self.panel / aspect
        wide = self.block * (self.panel + self.gap) - self.gap
        wide = min(
            wide,
            aspect * (self.block * (self.picture + self.caption + self.strip) - self.caption - self.strip),
        )
        self.tissue: Box = (self.margin, self.head + self.caption, wide, wide / aspect)
        cells = (divmod(cell, self.columns) for cell in range(self.columns * (genes + self.block**2)))
        self.cells = [(row, column) for row, column in cells if max(row, column) >= self.block][:genes]

    def box(self, place: int) -> Box:
        """The picture of the gene at `place`."""
        row, column = self.cells[place]
        top = self.head + self.caption + row * (self.picture + self.caption + self.strip)
        return self.margin + column * (self.panel + self.gap), top, self.panel, self.picture


@contextmanager
def _any_script() -> Iterator[None]:
    """Let a slide be named in a script the font has no letters of; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield
