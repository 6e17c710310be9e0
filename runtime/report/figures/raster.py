"""Pages as PNG: Pillow and NumPy draw them in a tenth of the time that matplotlib needs to load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mclst.runtime.report.figures.colors import INK
from mclst.runtime.report.figures.layout import DPI, POINTS, Box, Page, Window
from mclst.runtime.report.figures.png import encode_png

RING_PT = 0.5
"""Width of the line of a ring, points."""
BLOCK_PX = 1 << 20
"""Pixels of discs computed at a time."""
SOFTWARE = {"Software": "mclst"}


class RasterPage(Page):
    """A page of pixels; dpi: dots per inch."""

    def __init__(self, height: float, dpi: int = DPI) -> None:
        super().__init__(height)
        self.dpi = dpi
        self._page = Image.new("RGB", (round(self.width * dpi), round(height * dpi)), "white")
        self._draw = ImageDraw.Draw(self._page)

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
        content = " ".join(content.splitlines())  # Pillow lays out one line at a time
        font = _font(bold, size * self.dpi / POINTS)
        shown, width = content, font.getlength(content)
        while width > max_width * self.dpi and len(content) > 1:
            content = content[:-1]
            shown = content + "…"
            width = font.getlength(shown)
        anchor = {"left": "ls", "center": "ms", "right": "rs"}[align]
        self._draw.text((left * self.dpi, baseline * self.dpi), shown, color, font, anchor)
        return width / self.dpi

    def vertical_text(self, right: float, middle: float, content: str, *, size: float) -> None:
        """Draw bold text that reads upwards, around `middle`, its lower side at `right`."""
        font = _font(True, size * self.dpi / POINTS)
        left, top, width, height = font.getbbox(content)
        mask = Image.new("L", (math.ceil(width - left), math.ceil(height - top)))
        ImageDraw.Draw(mask).text((-left, -top), content, 255, font)
        mask = mask.transpose(Image.Transpose.ROTATE_90)
        corner = round(right * self.dpi) - mask.width, round(middle * self.dpi - mask.height / 2)
        self._page.paste(Image.new("RGB", mask.size, INK), corner, mask)

    def rectangle(self, box: Box, color: str) -> None:
        """Fill a box; see Page."""
        left, top, width, height = self._pixels(box)
        self._page.paste(ImageColor.getrgb(color), (left, top, left + width, top + height))

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
        corners, size = [self._pixels(box)[:2] for box in boxes], self._pixels(boxes[0])[2:]
        place, part = [], []  # of each axis: px of the box, px of the picture
        for axis, length in enumerate(size):
            begin, end = window[2 * axis : 2 * axis + 2]
            first, last = extent[2 * axis : 2 * axis + 2]
            side = pixels.shape[1 - axis]
            place.append([round(length * (at - begin) / (end - begin)) for at in (first, last)])
            place[axis] = [max(0, place[axis][0]), min(length, place[axis][1])]
            # Rounded to whole pixels of the box, where the picture ends inside it.
            seen = (begin + at * (end - begin) / length for at in place[axis])
            part.append([min(max((at - first) / (last - first) * side, 0.0), side) for at in seen])
        (left, right), (top, bottom) = place
        if left >= right or top >= bottom:
            return
        shown = Image.fromarray(np.ascontiguousarray(pixels)).resize(
            (right - left, bottom - top),
            Image.Resampling.HAMMING if smooth else Image.Resampling.NEAREST,
            box=(part[0][0], part[1][0], part[0][1], part[1][1]),
        )
        mask = shown if shown.mode == "RGBA" else None
        for x, y in corners:
            self._page.paste(shown, (x + left, y + top), mask)

    def spots(
        self,
        boxes: Sequence[Box],
        window: Window,
        xy_px: NDArray[np.float64],
        diameter: float,
        colors: Sequence[NDArray[np.uint8]] | str,
    ) -> None:
        """Draw discs or rings; see Page."""
        if not len(xy_px) or not boxes:
            return
        width, height = self._pixels(boxes[0])[2:]
        scale = width / (window[1] - window[0])
        centers = (xy_px - (window[0], window[2])) * (scale, height / (window[3] - window[2]))
        line = RING_PT * self.dpi / POINTS if isinstance(colors, str) else None
        ring: Any = np.array(ImageColor.getrgb(colors)) if isinstance(colors, str) else None
        pixel, opacity, spot = _cover(centers, diameter * scale / 2, line, (height, width))
        for number, box in enumerate(boxes):
            corner = self._pixels(box)[:2]
            area = (*corner, corner[0] + width, corner[1] + height)
            panel = np.array(self._page.crop(area)).reshape(-1, 3)
            color = ring if isinstance(colors, str) else colors[number][spot]
            panel[pixel] = np.rint(
                panel[pixel] + opacity[:, None] * (color - panel[pixel].astype(np.float32))
            )
            self._page.paste(Image.fromarray(panel.reshape(height, width, 3)), corner)

    def content(self, kind: str = "png") -> bytes:
        """Return the page as a PNG."""
        if kind != "png":
            raise ValueError(f"a page of pixels is no {kind}")
        return encode_png(np.asarray(self._page), dpi=self.dpi, text=SOFTWARE)

    def _pixels(self, box: Box) -> tuple[int, int, int, int]:
        """A box in pixels, of a size that does not depend on its place."""
        left, top, width, height = box
        size = max(1, round(width * self.dpi)), max(1, round(height * self.dpi))
        return round(left * self.dpi), round(top * self.dpi), *size


def _cover(
    centers: NDArray[np.float64], radius: float, line: float | None, shape: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.intp]]:
    """Find the pixels under discs, or under rings of a line's width: flat index, opacity, number of the disc.

    Lengths are in pixels; shape: height, width. Where discs overlap, a pixel is of the one that covers more
    of it, of equal ones the later.
    """
    height, width = shape
    reach = math.ceil(radius + (line or 0.0) + 1)
    offsets = np.arange(-reach, reach + 1)
    opacity = np.zeros(height * width, np.float32)
    owner = np.zeros(height * width, np.intp)
    step = max(1, BLOCK_PX // len(offsets) ** 2)
    for start in range(0, len(centers), step):
        center = centers[start : start + step, :, None]
        nearby = np.floor(center).astype(np.intp) + offsets
        apart = (nearby + 0.5 - center).astype(np.float32)
        distance = np.hypot(apart[:, 0, None, :], apart[:, 1, :, None])
        # An edge covers a pixel as far as it reaches into it along the radius.
        if line is None:
            covered = np.clip(radius + 0.5 - distance, 0, 1)
        else:
            covered = np.clip(line / 2 + 0.5 - np.abs(distance - radius), 0, 1)
        x, y = nearby[:, 0, None, :], nearby[:, 1, :, None]
        inside = (covered > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        disc, row, column = np.nonzero(inside)
        pixel = nearby[disc, 1, row] * width + nearby[disc, 0, column]
        amount = covered[inside].astype(np.float32)
        np.maximum.at(opacity, pixel, amount)
        wins = amount >= opacity[pixel]
        owner[pixel[wins]] = start + disc[wins]
    painted = np.flatnonzero(opacity)
    return painted, opacity[painted], owner[painted]


@cache
def _font(bold: bool, size: float) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings; size: pixels."""
    return ImageFont.truetype(str(_fonts() / f"DejaVuSans{'-Bold' * bold}.ttf"), size)


@cache
def _fonts() -> Path:
    spec = find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
        if folder.is_dir():
            return folder
    import matplotlib  # where its data are elsewhere, as on Debian

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"
