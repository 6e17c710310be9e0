"""A few hundred places of a slide, read before the work to see how it is stained."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import SlideError, StainError
from mclst.runtime.slide.base import Slide, TileReadError
from mclst.runtime.trust.stain import Stain, measure_stain, name_other_stain

TISSUE_PLACES = 256
OVERVIEW_SIDE = 12
"""Places along each side of the overview."""
PLACE_PX = 24
COARSEST = 8.0
"""Level-0 pixels per pixel up to which a place still shows single nuclei."""


def check_stain(slide: Slide, xy_px: NDArray[np.float64], *, any_stain: bool = False) -> Stain | None:
    """Measure the stain of the tissue at the spots; raise StainError unless it is H&E, or `any_stain`.

    Parameters
    ----------
    slide : Slide
    xy_px : float64 [n, 2]
        The spots' centers, level-0 px.
    any_stain : bool

    Returns
    -------
    Stain or None
        None if not one place can be read: the run itself then says why.
    """
    stain = read_stain(slide, xy_px)
    other = "" if stain is None or any_stain else name_other_stain(stain)
    if other:
        raise StainError(
            f"{slide.path} is no H&E slide: {other}; give one stained with hematoxylin and eosin, "
            "or --any-stain to predict it anyway"
        )
    return stain


def read_stain(slide: Slide, xy_px: NDArray[np.float64]) -> Stain | None:
    """Measure the stain at up to 256 spots and, for the glass, 144 places all over the slide.

    slide: Slide. xy_px: float64 [n, 2], level-0 px. None if no place on tissue can be read.
    """
    tissue = _read_places(slide, _on_tissue(xy_px))
    overview = read_overview(slide)
    return measure_stain(tissue, overview) if len(tissue) else None


def read_overview(slide: Slide) -> NDArray[np.uint8]:
    """Read 144 places all over the slide, uint8 [n, 24, 24, 3]; unreadable ones are left out."""
    return _read_places(slide, _all_over(slide))


def expect_places(slide: Slide, xy_px: NDArray[np.float64]) -> None:
    """Announce what `read_stain` reads; see `Slide.expect`."""
    for positions in (_on_tissue(xy_px), _all_over(slide)):
        slide.expect(*_squares(slide, positions))


def _on_tissue(xy_px: NDArray[np.float64]) -> NDArray[np.float64]:
    step = max(1, -(-len(xy_px) // TISSUE_PLACES))
    # Sorted by row, so that places share decoded segments and lie all over the tissue.
    return xy_px[np.lexsort((xy_px[:, 0], xy_px[:, 1]))[::step]]


def _all_over(slide: Slide) -> NDArray[np.float64]:
    fractions = (np.arange(OVERVIEW_SIDE) + 0.5) / OVERVIEW_SIDE
    across, down = np.meshgrid(fractions * slide.width_px, fractions * slide.height_px)
    return np.stack([across.ravel(), down.ravel()], axis=1)


def _squares(slide: Slide, xy_px: NDArray[np.float64]) -> tuple[NDArray[np.int64], int, int]:
    """Corners, side and level of squares around positions, moved inside the slide."""
    level = max(i for i, level in enumerate(slide.levels) if i == 0 or level.downsample <= COARSEST)
    size = slide.levels[level]
    side = min(PLACE_PX, size.width_px, size.height_px)
    corners = np.floor(xy_px / size.downsample).astype(np.int64) - side // 2
    return np.clip(corners, 0, (size.width_px - side, size.height_px - side)), side, level


def _read_places(slide: Slide, xy_px: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The squares uint8 [n, 24, 24, 3] around positions; unreadable ones left out."""
    corners, side, level = _squares(slide, xy_px)
    if slide.remote is not None:
        slide.expect(corners, side, level)
    places = []
    for x, y in corners.tolist():
        try:
            places.append(slide.read(x, y, side, side, level=level))
        except TileReadError:
            continue
        except SlideError:
            break  # The file is gone: the run says so.
    return np.stack(places) if places else np.empty((0, side, side, 3), np.uint8)
