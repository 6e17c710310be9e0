"""An opened slide: levels, µm per pixel, any rectangle of pixels.

Frames: `x, y` count pixels of the level that is read, from its upper left corner, y down; level 0 is the
finest. A level's pixel (x, y) covers level-0 pixels from (x, y) * downsample on.
Readers live in files of their own: `pillow_reader` (JPEG, PNG), `tiff` (every TIFF-based slide),
`openslide_reader` (the rest). `open_slide` picks one by the file's content, never by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mclst.runtime.errors import SlideError
from mclst.runtime.slide.metadata import Objective

MAX_DECODED_PX = 1_000_000_000
"""Most pixels that are ever decoded in one piece: 3 GB of RGB."""
BOMB_PX, BOMB_RATIO = 89_000_000, 300

RGB = tuple[int, int, int]


def is_bomb(pixels: int, samples: int, held_bytes: int) -> bool:
    """Whether `held_bytes` would become a piece that is large, and larger than tissue ever packs, white glass included.

    A baseline JPEG of one colour packs some 170-fold, deflate of zeros a thousandfold.
    """
    return pixels > BOMB_PX and pixels * samples > BOMB_RATIO * held_bytes


class TileReadError(SlideError):
    """Pixels under one tile cannot be decoded; every other tile of the slide can still be read."""


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    width_px, height_px: its size in its own pixels.
    downsample: level-0 pixels per pixel of this level, along one axis; 1.0 for level 0.
    segment_px: (width, height) of what is decoded in one piece: a JPEG tile, a strip, a block of rows.
    """

    width_px: int
    height_px: int
    downsample: float
    segment_px: tuple[int, int]


class Slide(ABC):
    """A slide, open for reading; a context manager. `read` may be called from many threads at once.

    path: the file.
    reader: "pillow", "tifffile" or "openslide".
    vendor: who wrote it, as far as the file tells: "aperio", "hamamatsu", "jpeg", "generic-tiff", …
    mpp: µm per level-0 pixel, or None where the file does not say it believably.
    mpp_source: one phrase for people: where `mpp` comes from, or why there is none.
    objective: (power, where the file names it), or None; it decides nothing.
    icc: name of the colour profile the file carries, "" where none; pixels are given as stored, without it.
    levels: finest first; never empty.
    seconds_opening: what opening took, which for JPEG and PNG includes decoding.
    """

    def __init__(
        self,
        path: Path,
        *,
        reader: str,
        vendor: str,
        levels: tuple[Level, ...],
        mpp: float | None = None,
        mpp_source: str = "the file says none",
        icc: str = "",
        objective: Objective | None = None,
    ) -> None:
        self.path = path
        self.reader = reader
        self.vendor = vendor
        self.levels = levels
        self.seconds_opening = 0.0
        self.mpp = mpp
        self.mpp_source = mpp_source
        self.icc = icc
        self.objective = objective

    @property
    def width_px(self) -> int:
        """Width of level 0."""
        return self.levels[0].width_px

    @property
    def height_px(self) -> int:
        """Height of level 0."""
        return self.levels[0].height_px

    @property
    def seconds_file(self) -> float | None:
        """Busy seconds so far of all threads that read the file's bytes; None where a library reads them unseen."""
        return None

    def read(
        self, x: int, y: int, width: int, height: int, *, level: int = 0, pad: RGB = (0, 0, 0)
    ) -> NDArray[np.uint8]:
        """Read a rectangle of one level, uint8 [height, width, 3], RGB; the array is the caller's own.

        x, y: its upper left corner, in pixels of `level`; the rectangle may lie partly or wholly outside.
        pad: colour of what lies outside the image.

        Raises TileReadError where pixels under the rectangle cannot be decoded, SlideError where the file
        has gone bad as a whole, ValueError for a size below 1 or a level that does not exist.
        """
        if width < 1 or height < 1:
            raise ValueError(f"a rectangle of {width} x {height} px cannot be read")
        pixels = np.empty((height, width, 3), np.uint8)
        self.read_into(pixels, x, y, level=level, pad=pad)
        return pixels

    def read_into(
        self, pixels: NDArray[np.uint8], x: int, y: int, *, level: int = 0, pad: RGB = (0, 0, 0)
    ) -> None:
        """Read a rectangle as `read` does into an array of the caller's, uint8 [height, width, 3]."""
        if not 0 <= level < len(self.levels):
            raise ValueError(f"level {level} does not exist; {self.path} has {len(self.levels)}")
        height, width, _ = pixels.shape
        size = self.levels[level]
        if x >= 0 and y >= 0 and x + width <= size.width_px and y + height <= size.height_px:
            self._fill(pixels, x, y, level)
            return
        left, right = max(x, 0), min(x + width, size.width_px)
        top, bottom = max(y, 0), min(y + height, size.height_px)
        pixels[:] = pad
        if left < right and top < bottom:
            self._fill(pixels[top - y : bottom - y, left - x : right - x], left, top, level)

    def expect(self, corners: NDArray[np.int64], side: int, level: int) -> None:  # noqa: B027 - a hint
        """Say which squares of a level are going to be read, once each, so that what they share is decoded once.

        corners: int64 [n, 2], (x, y) of their upper left corners, px of the level; side: px. Only a hint.
        """

    def thumbnail(self, max_px: int) -> tuple[NDArray[np.uint8], float]:
        """Picture the whole slide: (uint8 [h, w, 3], scale), the longer side at most `max_px`.

        Area-averaged from the smallest level that is large enough, in strips of bounded memory; never
        enlarged. scale: thumbnail pixels per level-0 pixel. Areas that cannot be decoded stay white.
        """
        from mclst.runtime.slide.base import thumbnail

        return thumbnail(self, max_px)

    def _fill(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        """Fill uint8 [h, w, 3] with a rectangle that lies wholly inside the level."""
        height, width, _ = pixels.shape
        pixels[:] = self._read_inside(x, y, width, height, level)

    @abstractmethod
    def _read_inside(self, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        """Read a rectangle that lies wholly inside the level."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; reads under way in other threads finish first or are unharmed."""

    def __repr__(self) -> str:
        scale = "µm/px unknown" if self.mpp is None else f"{self.mpp:.4g} µm/px"
        return f"Slide({str(self.path)!r}: {self.width_px} x {self.height_px} px, {scale}, {self.vendor} by {self.reader})"

    def _repr_html_(self) -> str:
        from mclst.runtime.html_repr import as_html

        rows = [
            ("file", self.path),
            ("kind", f"{self.vendor}, read by {self.reader}"),
            ("level 0", f"{self.width_px:,} x {self.height_px:,} px"),
            ("µm per px", self.mpp),
            ("said by", self.mpp_source),
            ("levels", len(self.levels)),
        ]
        return as_html("Slide", rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


STRIP_PX = 1 << 24
SMALLEST_HOLE_PX = 64


def thumbnail(slide: Slide, max_px: int) -> tuple[NDArray[np.uint8], float]:
    """Area-average a slide to at most `max_px` on its longer side: (uint8 [h, w, 3], scale).

    scale: thumbnail pixels per level-0 pixel. Pixels that cannot be decoded are white.
    """
    if max_px < 1:
        raise ValueError(f"a thumbnail of {max_px} px cannot be made")
    scale = min(1.0, max_px / max(slide.width_px, slide.height_px))
    width, height = max(1, round(slide.width_px * scale)), max(1, round(slide.height_px * scale))
    level = max(
        i
        for i, size in enumerate(slide.levels)
        if i == 0 or (size.width_px >= width and size.height_px >= height)
    )
    size = slide.levels[level]
    step = size.height_px / height
    rows = max(1, int(STRIP_PX / size.width_px / step))
    picture = np.empty((height, width, 3), np.uint8)
    for row in range(0, height, rows):
        end = min(row + rows, height)
        top, bottom = int(row * step), min(size.height_px, int(np.ceil(end * step)))
        strip = _read_or_white(slide, 0, top, size.width_px, bottom - top, level)
        # A box filter never looks beyond the rows an output row covers, so strips join without a seam.
        box = (0.0, row * step - top, float(size.width_px), min(end * step, size.height_px) - top)
        image = Image.fromarray(strip).resize((width, end - row), Image.Resampling.BOX, box=box)
        picture[row:end] = np.asarray(image)
    return picture, max(width, height) / max(slide.width_px, slide.height_px)


def _read_or_white(slide: Slide, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
    from mclst.runtime.slide.base import TileReadError

    try:
        return slide.read(x, y, width, height, level=level)
    except TileReadError:
        if max(width, height) <= SMALLEST_HOLE_PX:
            return np.full((height, width, 3), 255, np.uint8)
    if width >= height:
        half = width // 2
        left = _read_or_white(slide, x, y, half, height, level)
        return np.hstack([left, _read_or_white(slide, x + half, y, width - half, height, level)])
    half = height // 2
    upper = _read_or_white(slide, x, y, width, half, level)
    return np.vstack([upper, _read_or_white(slide, x, y + half, width, height - half, level)])
