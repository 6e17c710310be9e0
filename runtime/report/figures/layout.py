"""Where the parts of a picture of genes stand, and what draws them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.report.figures.colors import INK

DPI = 200
WIDTH = 13.33
"""Inches: the width of a 16:9 slide."""
CAPITAL = 0.73
"""Height of a capital letter or digit of the font, of its size."""
POINTS = 72
"""Points per inch."""
Box = tuple[float, float, float, float]
"""Inches: left, top, width, height."""
Window = tuple[float, float, float, float]
"""Level-0 px: left, right, top, bottom."""


class Page(ABC):
    """A white page whose parts are placed in inches from its top left corner; height: inches."""

    def __init__(self, height: float) -> None:
        self.width, self.height = WIDTH, height

    @abstractmethod
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
        """Draw literal text beside, around or before (left, baseline), cut to `max_width`; return its width.

        size: points.
        """

    @abstractmethod
    def rectangle(self, box: Box, color: str) -> None:
        """Fill a box."""

    @abstractmethod
    def picture(
        self,
        boxes: Sequence[Box],
        pixels: NDArray[np.uint8],
        extent: Window,
        window: Window,
        *,
        smooth: bool = True,
    ) -> None:
        """Show in equal boxes the part in `window` of pixels [h, w, 3 or 4] that cover `extent`.

        smooth: average and interpolate; else each pixel stays a rectangle of its color and opacity.
        """

    @abstractmethod
    def spots(
        self,
        boxes: Sequence[Box],
        window: Window,
        xy_px: NDArray[np.float64],
        diameter: float,
        colors: Sequence[NDArray[np.uint8]] | str,
    ) -> None:
        """Draw the same spots in equal boxes, as discs around xy_px [n, 2]; level-0 px.

        colors: for each box uint8 [n, 3]; or one color, of rings.
        """

    @abstractmethod
    def content(self, kind: str) -> bytes:
        """Return the page as a file: png, pdf or svg, as far as it can be one."""


def baseline(middle: float, size: float) -> float:
    """Return the baseline of digits of `size` points around `middle`, inches."""
    return middle + CAPITAL * size / POINTS / 2


class GenesLayout:
    """A large panel for the tissue and equal panels for the genes, as large as a 16:9 page allows.

    genes: number of gene panels. aspect: width / height of a panel. stacked: whether a gene's figures stand
    below its name instead of beside it.
    """

    target_height, margin, head, foot = 7.5, 0.5, 1.0, 0.55
    gap, strip = 0.28, 0.3
    one_line, two_lines, narrow = 0.3, 0.48, 2.8
    """Heights of a caption, and the width below which a panel has no room for name and figures in a line."""

    def __init__(self, genes: int, aspect: float) -> None:
        self.block = 2 if genes >= 4 else 1  # cells along a side of the tissue panel

        def size(columns: int) -> tuple[float, float]:
            panel = (WIDTH - 2 * self.margin - (columns - 1) * self.gap) / columns
            rows = max(self.block, math.ceil((genes + self.block**2) / columns))
            caption = self.two_lines if panel < self.narrow else self.one_line
            return panel, self.head + self.foot + rows * (panel / aspect + caption + self.strip)

        def visible_width(columns: int) -> float:
            panel, height = size(columns)
            return panel * min(1.0, self.target_height / height)

        self.columns = max(range(self.block + 1, max(self.block, genes) + 2), key=visible_width)
        self.panel, self.height = size(self.columns)
        self.panel_height = self.panel / aspect
        self.stacked = self.panel < self.narrow
        self.caption = self.two_lines if self.stacked else self.one_line
        row = self.panel_height + self.caption + self.strip
        width = min(
            self.block * (self.panel + self.gap) - self.gap,
            aspect * (self.block * row - self.caption - self.strip),
        )
        self.tissue: Box = (self.margin, self.head + self.caption, width, width / aspect)
        cells = (divmod(cell, self.columns) for cell in range(self.columns * (genes + self.block**2)))
        chosen = [(row, column) for row, column in cells if max(row, column) >= self.block][:genes]
        self.boxes: list[Box] = [self._box(row, column) for row, column in chosen]

    def _box(self, row: int, column: int) -> Box:
        top = self.head + self.caption + row * (self.panel_height + self.caption + self.strip)
        return self.margin + column * (self.panel + self.gap), top, self.panel, self.panel_height
