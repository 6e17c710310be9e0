"""Base class of slides: levels, µm per pixel, any rectangle of pixels, a thumbnail.

`x, y` are pixels of the level that is read, from its upper left corner, y down; level 0 is the finest. A
level's pixel (x, y) begins at level-0 pixel (x, y) * downsample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mclst.runtime.decoding.area_mean import area_mean, window_edges
from mclst.runtime.errors import SlideError
from mclst.runtime.slide.metadata import Objective
from mclst.sections.location import SlideLocation

if TYPE_CHECKING:
    from mclst.runtime.storage.remote import RemoteObjects

MAX_DECODED_PX = 1_000_000_000
"""Most pixels that are decoded in one piece: 3 GB of RGB."""
BOMB_PX, BOMB_RATIO = 89_000_000, 300
STRIP_PX = 1 << 24
MIN_HOLE_PX = 64
WHITE = 255

RGB = tuple[int, int, int]


def is_bomb(pixels: int, samples: int, compressed_bytes: int) -> bool:
    """Whether a piece is large and compressed more than tissue or white glass ever is."""
    # A baseline JPEG of one color packs some 170-fold, deflate of zeros a thousandfold.
    return pixels > BOMB_PX and pixels * samples > BOMB_RATIO * compressed_bytes


class TileReadError(SlideError):
    """Pixels under one tile cannot be decoded; other tiles of the slide can still be read."""


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    width_px, height_px: size in its own pixels. downsample: level-0 pixels per pixel along one axis; 1.0 for
    level 0. segment_px: (width, height) decoded in one piece: a JPEG tile, a strip, a block of rows.
    """

    width_px: int
    height_px: int
    downsample: float
    segment_px: tuple[int, int]


class Slide(ABC):
    """A slide open for reading; a context manager. Threads may read at the same time.

    Get one from `open_slide`.

    Attributes
    ----------
    path : Path or RemoteLocation
        Both have `name` and `stem`; the text of an address shows no secret.
    reader : str
        "pillow", "tifffile", "openslide" or "zarr".
    vendor : str
        Who wrote the file: "aperio", "hamamatsu", "jpeg", "generic-tiff", …
    levels : tuple of Level
        Finest first; never empty.
    mpp : float or None
        µm per level-0 px, the mean of both axes; None if the file gives no plausible value.
    mpp_xy : (float, float) or None
        The same along x and y, which differ a little on some scanners; µm become pixels by these.
    mpp_source : str
        Where `mpp` comes from, or why there is none.
    objective : (float, str) or None
        Power, and where the file names it; for information only.
    icc : str
        Name of the file's ICC profile, "" without one; it is not applied to the pixels.
    border_px : (int, int)
        Level-0 px left of and above what was scanned, which QuPath leaves out; of MIRAX and others that
        OpenSlide reads.
    remote : RemoteObjects or None
        What is read over the network; None for a slide of this machine.
    seconds_opening : float
        Time to open, which for JPEG and PNG includes decoding.
    """

    def __init__(
        self,
        path: SlideLocation,
        *,
        reader: str,
        vendor: str,
        levels: tuple[Level, ...],
        mpp: float | tuple[float, float] | None = None,
        mpp_source: str = "the file says none",
        icc: str = "",
        objective: Objective | None = None,
    ) -> None:
        self.path = path
        self.reader = reader
        self.vendor = vendor
        self.levels = levels
        self.border_px = (0, 0)
        self.remote: RemoteObjects | None = None
        self.seconds_opening = 0.0
        self.mpp_xy = mpp if mpp is None or isinstance(mpp, tuple) else (mpp, mpp)
        self.mpp = None if self.mpp_xy is None else sum(self.mpp_xy) / 2
        self.mpp_source = mpp_source
        self.icc = icc
        self.objective = objective
        self._overview: tuple[NDArray[np.uint8], float] | None = None

    @property
    def width_px(self) -> int:
        """Width of level 0."""
        return self.levels[0].width_px

    @property
    def height_px(self) -> int:
        """Height of level 0."""
        return self.levels[0].height_px

    @property
    def is_pending(self) -> bool:
        """Whether a picture's pixels are still to be decoded."""
        return False

    @property
    def seconds_file(self) -> float | None:
        """Seconds that all threads spent reading the file so far; None if a library hides them."""
        return None

    def read(
        self, x: int, y: int, width: int, height: int, *, level: int = 0, pad: RGB = (0, 0, 0)
    ) -> NDArray[np.uint8]:
        """Read a rectangle of one level.

        Parameters
        ----------
        x, y : int
            Upper left corner, px of `level`; the rectangle may reach or lie outside the image.
        width, height : int
            Size, px of `level`, at least 1.
        level : int
            Index into `levels`.
        pad : (int, int, int)
            RGB outside the image.

        Returns
        -------
        uint8 [height, width, 3]
            RGB, a new array.

        Raises
        ------
        TileReadError
            If pixels under the rectangle cannot be decoded.
        SlideError
            If the file can no longer be read.
        ValueError
            If the size is below 1 or the level does not exist.
        """
        if width < 1 or height < 1:
            raise ValueError(f"a rectangle of {width} x {height} px cannot be read")
        pixels = np.empty((height, width, 3), np.uint8)
        self.read_into(pixels, x, y, level=level, pad=pad)
        return pixels

    def read_into(
        self, pixels: NDArray[np.uint8], x: int, y: int, *, level: int = 0, pad: RGB = (0, 0, 0)
    ) -> None:
        """Read a rectangle into an array uint8 [height, width, 3]; see `read`."""
        if not 0 <= level < len(self.levels):
            raise ValueError(f"level {level} does not exist; {self.path} has {len(self.levels)}")
        height, width, _ = pixels.shape
        size = self.levels[level]
        left, right = max(x, 0), min(x + width, size.width_px)
        top, bottom = max(y, 0), min(y + height, size.height_px)
        if (right - left, bottom - top) != (width, height):
            pixels[:] = pad
        if left < right and top < bottom:
            self._read_inside(pixels[top - y : bottom - y, left - x : right - x], left, top, level)

    def read_squares(
        self, squares: NDArray[np.uint8], corners: NDArray[np.int64], *, level: int = 0, pad: RGB = (0, 0, 0)
    ) -> list[tuple[int, str]]:
        """Read many squares of one level into an array uint8 [n, side, side, 3].

        corners: int64 [n, 2], (x, y) of their upper left corners, px of the level. Returns (number, reason)
        of squares that cannot be decoded; raises other errors as `read` does.
        """
        return self._read_one_by_one(squares, corners, range(len(squares)), level, pad)

    def _read_one_by_one(
        self,
        squares: NDArray[np.uint8],
        corners: NDArray[np.int64],
        numbers: Iterable[int],
        level: int,
        pad: RGB,
    ) -> list[tuple[int, str]]:
        failed = []
        for number in numbers:
            x, y = corners[number].tolist()
            try:
                self.read_into(squares[number], x, y, level=level, pad=pad)
            except TileReadError as error:
                failed.append((number, str(error)))
        return failed

    def expect(self, corners: NDArray[np.int64], side: int, level: int) -> None:  # noqa: B027 - optional
        """Announce the squares of a level that will be read, once each: a hint for caching.

        corners: int64 [n, 2], (x, y) of their upper left corners, px of the level; side: px of the level.
        """

    def expect_overview(self, max_px: int) -> None:  # noqa: B027 - optional
        """Announce that `overview` will be asked for: a hint for decoding."""

    def decode(self) -> None:  # noqa: B027 - optional
        """Decode a picture that was opened lazily, as its first read does; raises what opening would.

        Only what `expect` and `expect_overview` announced is kept, all of it without them; a read of anything
        else decodes the picture again.
        """

    def stopping(self) -> AbstractContextManager[None]:
        """End reads that wait for a network, in any thread: these, and new ones inside, raise SlideError."""
        return nullcontext() if self.remote is None else self.remote.stopping()

    def thumbnail(self, max_px: int) -> tuple[NDArray[np.uint8], float]:
        """Picture the whole slide, area-averaged and never enlarged; undecodable areas are white.

        Parameters
        ----------
        max_px : int
            Most pixels on the longer side.

        Returns
        -------
        uint8 [h, w, 3]
            RGB.
        float
            Thumbnail pixels per level-0 px.
        """
        if max_px < 1:
            raise ValueError(f"a thumbnail of {max_px} px cannot be made")
        longest = max(self.width_px, self.height_px)
        width, height = self._reduced_size(max_px)
        level = max(
            i
            for i, size in enumerate(self.levels)
            if i == 0 or (size.width_px >= width and size.height_px >= height)
        )
        size = self.levels[level]
        rows, columns = window_edges(size.height_px, height), window_edges(size.width_px, width)
        picture = np.empty((height, width, 3), np.uint8)
        # In strips, so that memory is bounded whatever the size of the level.
        at_once = max(1, int(STRIP_PX / size.width_px / (size.height_px / height)))
        buffer: NDArray[np.uint8] | None = None
        for row in range(0, height, at_once):
            bounds = rows[row : row + at_once + 1]
            top, bottom = int(bounds[0]), int(bounds[-1])
            strip = self._rows_in_memory(top, bottom, level)
            if strip is None:
                if buffer is None or len(buffer) < bottom - top:
                    buffer = np.empty((bottom - top, size.width_px, 3), np.uint8)
                strip = buffer[: bottom - top]
                self._read_or_white(strip, 0, top, level)
            picture[row : row + at_once] = area_mean(strip, bounds - top, columns)
        return picture, max(width, height) / longest

    def overview(self, max_px: int) -> tuple[NDArray[np.uint8], float]:
        """Picture the whole slide as `thumbnail` does, made from an earlier picture if one is large enough.

        Tissue mask, map and page so share one reading: ask for the largest first.
        """
        longest = max(self.width_px, self.height_px)
        size = self._reduced_size(max_px)
        if self._overview is None or max(self._overview[0].shape) < max(size):
            self._overview = self.thumbnail(max_px)
        picture = self._overview[0]
        if picture.shape[1::-1] != size:
            picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
        return picture, max(size) / longest

    def _reduced_size(self, max_px: int) -> tuple[int, int]:
        """Size of a picture of at most `max_px` on the longer side: (width, height)."""
        scale = min(1.0, max_px / max(self.width_px, self.height_px))
        return max(1, round(self.width_px * scale)), max(1, round(self.height_px * scale))

    def _rows_in_memory(self, top: int, bottom: int, level: int) -> NDArray[np.uint8] | None:
        """Return whole rows uint8 [bottom - top, width, 3] of a level that is decoded already."""
        return None

    def _read_or_white(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        """Fill a rectangle, halving it around what cannot be decoded until the white hole is small."""
        try:
            self.read_into(pixels, x, y, level=level)
            return
        except TileReadError:
            height, width, _ = pixels.shape
            if max(width, height) <= MIN_HOLE_PX:
                pixels[:] = WHITE
                return
        if width >= height:
            half = width // 2
            self._read_or_white(pixels[:, :half], x, y, level)
            self._read_or_white(pixels[:, half:], x + half, y, level)
        else:
            half = height // 2
            self._read_or_white(pixels[:half], x, y, level)
            self._read_or_white(pixels[half:], x, y + half, level)

    @abstractmethod
    def _read_inside(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        """Fill uint8 [h, w, 3] with the rectangle at (x, y), which is inside the level."""

    @abstractmethod
    def close(self) -> None:
        """Release the file. Reads in progress in other threads finish or fail cleanly."""

    def __repr__(self) -> str:
        scale = "µm/px unknown" if self.mpp is None else f"{self.mpp:.4g} µm/px"
        size = f"{self.width_px} x {self.height_px} px"
        return f"Slide({str(self.path)!r}: {size}, {scale}, {self.vendor} by {self.reader})"

    def _repr_html_(self) -> str:
        from mclst.runtime.html_repr import html_table

        rows = [
            ("file", self.path),
            ("kind", f"{self.vendor}, read by {self.reader}"),
            ("level 0", f"{self.width_px:,} x {self.height_px:,} px"),
            ("µm per px", self.mpp),
            ("source", self.mpp_source),
            ("levels", len(self.levels)),
        ]
        return html_table("Slide", rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
