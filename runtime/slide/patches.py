"""HEST-1k's patches as a slide: known where a patch lies, and told as unreadable elsewhere."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import SlideError
from mclst.runtime.slide.base import Level, Slide, TileReadError
from mclst.sections.errors import SectionError, pass_out_of_memory
from mclst.sections.formats.hest_patches import PIXELS, Patches, read_patches

HELD = 64
"""Patches kept, for tiles that reach over several."""


class PatchSlide(Slide):
    """A picture put together of patches; where several overlap, the one whose middle is nearest counts."""

    def __init__(self, patches: Patches) -> None:
        width, height = patches.size_px
        super().__init__(
            patches.path,
            reader="hdf5",
            vendor="hest-patches",
            levels=(Level(width, height, 1.0, (patches.side_px, patches.side_px)),),
            mpp=patches.mpp,
            mpp_source="pixel_size and downsample of its patches",
        )
        self._patches = patches
        self._held: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._lock = Lock()
        self._file: h5py.File | None = h5py.File(patches.path, "r")

    def _read_inside(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        rows = self._under(pixels, x, y)
        known = np.zeros(pixels.shape[:2], np.bool_)
        for row in rows:
            inside, _ = self._overlap(row, pixels, x, y)
            known[inside] = True
        if not known.all():
            height, width, side = *pixels.shape[:2], self._patches.side_px
            raise TileReadError(
                f"{self.path} has no patch for all of the {width} x {height} px at ({x}, {y}), only squares "
                f"of {side} px around its spots; take smaller tiles, or the slide"
            )
        self._paste(pixels, x, y, rows)

    def _read_or_white(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        pixels[:] = 255
        self._paste(pixels, x, y, self._under(pixels, x, y))

    def _under(self, pixels: NDArray[np.uint8], x: int, y: int) -> list[int]:
        """Patches that share pixels with a rectangle, the nearest last; only that one if it has them all."""
        height, width, _ = pixels.shape
        corners, side = self._patches.corners, self._patches.side_px
        size = np.array([width, height])
        shift = corners - (x, y)
        rows = np.flatnonzero(((shift < size) & (shift > -side)).all(axis=1))
        away = np.abs(2 * shift[rows] + side - size).sum(axis=1)
        rows = rows[np.argsort(-away, kind="stable")]
        if len(rows) and (shift[rows[-1]] <= 0).all() and (shift[rows[-1]] + side >= size).all():
            rows = rows[-1:]
        return [int(row) for row in rows]

    def _paste(self, pixels: NDArray[np.uint8], x: int, y: int, rows: list[int]) -> None:
        for row in rows:
            inside, of_patch = self._overlap(row, pixels, x, y)
            pixels[inside] = self._patch(row)[of_patch]

    def _overlap(
        self, row: int, pixels: NDArray[np.uint8], x: int, y: int
    ) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where a patch lies in a rectangle, and which part of the patch that is."""
        inside, of_patch = [], []
        corner = self._patches.corners[row].tolist()
        for start, length, first in ((corner[1], pixels.shape[0], y), (corner[0], pixels.shape[1], x)):
            begin, end = max(start, first), min(start + self._patches.side_px, first + length)
            inside.append(slice(begin - first, end - first))
            of_patch.append(slice(begin - start, end - start))
        return (inside[0], inside[1]), (of_patch[0], of_patch[1])

    def _patch(self, row: int) -> NDArray[np.uint8]:
        with self._lock:
            patch = self._held.get(row)
            if patch is not None:
                self._held.move_to_end(row)
                return patch
            if self._file is None:
                raise SlideError(f"{self.path} is closed; open it again to read from it")
            try:
                patch = np.asarray(self._file[PIXELS][row])
            except (OSError, RuntimeError, ValueError) as error:  # what h5py raises on damaged bytes
                pass_out_of_memory(error)
                reason = str(error).splitlines()[0]
                raise TileReadError(f"{self.path}: patch {row} cannot be read ({reason})") from error
            self._held[row] = patch
            if len(self._held) > HELD:
                self._held.popitem(last=False)
            return patch

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            file, self._file = self._file, None
            self._held.clear()
        if file is not None:
            file.close()


def open_patches(path: Path) -> PatchSlide:
    """Open `patches/ID.h5`; raises SlideError if it holds none or does not say where they lie."""
    try:
        return PatchSlide(read_patches(path))
    except SectionError as error:
        raise SlideError(str(error)) from error
    except OSError as error:
        raise SlideError(f"{path} cannot be read ({error}); copy it again") from error
