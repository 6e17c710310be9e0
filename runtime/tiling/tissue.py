"""Tissue masks: detected by color, or read from a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import SlideError
from mclst.runtime.slide.base import Slide
from mclst.runtime.slide.open import open_slide

MASK_PX = 4096
MASK_UM = 8.0
MIN_CHROMA, MAX_CHROMA = 10.0, 25.0
SPECK_UM2 = 1e4
ASPECT = 0.02


@dataclass(frozen=True)
class TissueMask:
    """Which parts of a slide are tissue.

    mask: bool [h, w] over the whole slide. method: how it was made, for people.
    """

    mask: NDArray[np.bool_]
    method: str


def find_tissue(slide: Slide, mpp: float) -> TissueMask:
    """Find the tissue of an H&E slide by its color.

    Parameters
    ----------
    slide : Slide
    mpp : float
        µm per level-0 px.

    Returns
    -------
    TissueMask

    Notes
    -----
    The slide is averaged to 8 µm/px, at most 4096 px a side. Chroma is max(R, G, B) - min(R, G,
    B), smoothed by a Gaussian of 1 px; stained tissue has chroma, glass and black scanner borders have none.
    Tissue is above Otsu's threshold (Otsu 1979), clipped to 10-25 so that a slide full of tissue is not split
    in two. Specks below 0.01 mm² are dropped and holes below it filled. Pen marks and folds are not
    recognized: use a mask for these.
    """
    from scipy import ndimage  # only a grid needs it

    longest = max(slide.width_px, slide.height_px)
    slide.overview(MASK_PX)  # read once, and large enough for the map's picture and the page too
    picture, scale = slide.overview(max(64, min(MASK_PX, round(longest * mpp / MASK_UM))))
    smooth = ndimage.gaussian_filter(np.ptp(picture, axis=2).astype(np.float32), 1.0)
    threshold = float(np.clip(otsu(smooth), MIN_CHROMA, MAX_CHROMA))
    speck = round(SPECK_UM2 * (scale / mpp) ** 2)
    mask = ~_without_specks(~_without_specks(smooth > threshold, speck), speck)
    return TissueMask(mask, f"tissue by chroma above {threshold:.0f} at {mpp / scale:.3g} µm/px")


def read_mask(path: Path, slide: Slide) -> TissueMask:
    """Read a mask of the whole slide, at any scale: anything but black and transparent is tissue.

    In a JPEG anything below 128 is background, since its black is not quite black. Raises SlideError if the
    picture cannot be read, has another aspect ratio than the slide, or marks no tissue.
    """
    with open_slide(path, background=0) as picture:
        if picture.levels[0].height_px * picture.levels[0].width_px == 0:
            raise SlideError(f"{path} is empty; give a mask of the whole slide")
        width, height = picture.width_px, picture.height_px
        wide, high = width * slide.height_px, height * slide.width_px
        rounding = slide.width_px + slide.height_px
        if abs(wide - high) > max(ASPECT * min(wide, high), rounding):
            raise SlideError(
                f"{path} is {width} x {height} px and {slide.path.name} {slide.width_px} x "
                f"{slide.height_px}: another shape; give a mask of the whole slide, at any scale"
            )
        pixels, _ = picture.thumbnail(MASK_PX)
        mask = pixels.max(axis=2) > (127 if picture.vendor == "jpeg" else 0)
    if not mask.any():
        raise SlideError(
            f"{path} is black or transparent throughout, so it marks no tissue; give a mask with tissue"
        )
    return TissueMask(mask, f"tissue by {path.name}")


def otsu(values: NDArray[np.float32]) -> float:
    """Otsu's threshold of values 0-255 over 256 bins: it maximizes the between-class variance."""
    counts = np.histogram(values, 256, (0, 256))[0].astype(np.float64)
    centers = np.arange(256) + 0.5
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    total = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = total[:-1] / below - (total[-1] - total[:-1]) / above
        between = np.where((below > 0) & (above > 0), below * above * difference**2, 0.0)
    return float(np.argmax(between)) + 1


def _without_specks(mask: NDArray[np.bool_], min_px: int) -> NDArray[np.bool_]:
    """Drop connected components (4-connected) of fewer than `min_px` pixels."""
    from scipy import ndimage

    labels = ndimage.label(mask)[0]
    large = np.bincount(labels.ravel()) >= min_px
    large[0] = False
    return np.asarray(large[labels])
