"""Where a slide holds tissue: found by its colour, or given as a picture.

The method, in full: the slide is averaged to 8 µm per pixel (at most 4096 pixels a side); a pixel's chroma is the
largest less the smallest of its R, G and B, smoothed over one pixel (Gaussian). Stained tissue has chroma, glass and
black scanner borders have none. Tissue is above Otsu's threshold (Otsu 1979), which is kept within 10-25 so that a
slide full of tissue is not split in two; then specks below 0.01 mm² are dropped and holes below it filled.
It knows nothing of pen marks or folds: give a mask where these matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mclst.runtime.errors import SlideError
from mclst.runtime.slide.base import Slide
from mclst.runtime.slide.open import open_slide

MASK_PX = 4096
MASK_UM = 8.0
LEAST_CHROMA, MOST_CHROMA = 10.0, 25.0
SPECK_UM2 = 1e4
ASPECT = 0.02


@dataclass(frozen=True)
class TissueMask:
    """Which parts of a slide are tissue.

    mask: bool [h, w] over the whole slide. how: in words for people.
    """

    mask: NDArray[np.bool_]
    how: str

    @property
    def fraction(self) -> float:
        """Part of the slide that is tissue, 0-1."""
        return float(self.mask.mean())


def find_tissue(slide: Slide, mpp: float) -> TissueMask:
    """Find the tissue of an H&E slide by its colour. mpp: µm per level-0 px."""
    longest = max(slide.width_px, slide.height_px)
    picture, scale = slide.thumbnail(max(64, min(MASK_PX, round(longest * mpp / MASK_UM))))
    smooth = ndimage.gaussian_filter(np.ptp(picture, axis=2).astype(np.float32), 1.0)
    threshold = float(np.clip(otsu(smooth), LEAST_CHROMA, MOST_CHROMA))
    speck = round(SPECK_UM2 * (scale / mpp) ** 2)
    mask = ~_without_specks(~_without_specks(smooth > threshold, speck), speck)
    return TissueMask(mask, f"tissue by chroma above {threshold:.0f} at {mpp / scale:.3g} µm/px")


def read_mask(path: Path, slide: Slide) -> TissueMask:
    """Read a mask of the whole slide, at any scale: black is background, anything else tissue.

    In a JPEG, whose black is not quite black, anything below 128 is background. Raises SlideError where the picture
    cannot be read, has another shape than the slide, or is black throughout.
    """
    with open_slide(path) as picture:
        if picture.levels[0].height_px * picture.levels[0].width_px == 0:
            raise SlideError(f"{path} is empty; give a mask of the whole slide")
        width, height = picture.width_px, picture.height_px
        wide, high = width * slide.height_px, height * slide.width_px
        rounding = slide.width_px + slide.height_px
        if abs(wide - high) > max(ASPECT * min(wide, high), rounding):
            raise SlideError(
                f"{path} is {width} x {height} px and {slide.path.name} {slide.width_px} x {slide.height_px}: another "
                "shape; give a mask of the whole slide, at any scale"
            )
        pixels, _ = picture.thumbnail(MASK_PX)
        mask = pixels.max(axis=2) > (127 if picture.vendor == "jpeg" else 0)
    if not mask.any():
        raise SlideError(
            f"{path} is black throughout, so no tissue is marked; give a mask with tissue above 0"
        )
    return TissueMask(mask, f"tissue by {path.name}")


def otsu(values: NDArray[np.float32]) -> float:
    """Otsu's threshold of values 0-255 over 256 bins: the one with the largest variance between its two sides."""
    counts = np.histogram(values, 256, (0, 256))[0].astype(np.float64)
    middle = np.arange(256) + 0.5
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    total = np.cumsum(counts * middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = total[:-1] / below - (total[-1] - total[:-1]) / above
        between = np.where((below > 0) & (above > 0), below * above * apart**2, 0.0)
    return float(np.argmax(between)) + 1


def _without_specks(mask: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """Drop the connected pieces (by edges) of fewer than `least` pixels."""
    pieces = ndimage.label(mask)[0]
    large = np.bincount(pieces.ravel()) >= least
    large[0] = False
    return np.asarray(large[pieces])
