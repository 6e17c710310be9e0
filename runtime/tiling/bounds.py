"""Check, before any work, that all spots are on the slide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import SpotsError
from mclst.runtime.slide.base import Slide
from mclst.sections.section import Spots

HIRES_PX = (600, 2000, 4000, 6000)
"""Longest sides of Space Ranger's downscaled images, which users often pass as the slide."""


def check_spots(spots: Spots, slide: Slide) -> None:
    """Raise SpotsError if a spot's center is outside the slide; name the first spot and a likely cause."""
    outside = ~_inside(spots.xy_px, slide.width_px, slide.height_px)
    if not outside.any():
        return
    first = int(np.flatnonzero(outside)[0])
    x, y = spots.xy_px[first]
    others = int(outside.sum()) - 1
    more = f", as are {others:,} more of {len(spots):,}" if others else ""
    raise SpotsError(
        f"{spots.path}, line {spots.row[first]}: spot {spots.id[first]} at x {x:g}, y {y:g} is outside "
        f"{slide.path.name} ({slide.width_px} x {slide.height_px} px){more}; {_hint(spots.xy_px, slide)}"
    )


def _inside(xy: NDArray[np.float64], width: int, height: int) -> NDArray[np.bool_]:
    return (xy >= 0).all(axis=1) & (xy[:, 0] < width) & (xy[:, 1] < height)


def _hint(xy: NDArray[np.float64], slide: Slide) -> str:
    if _inside(xy[:, ::-1], slide.width_px, slide.height_px).all():
        return "x and y exchanged would fit: check the columns"
    longest = max(slide.width_px, slide.height_px)
    if (xy >= 0).all() and xy.max() > longest and longest in HIRES_PX:
        return "the slide is a downscaled image and the spots are full-resolution pixels: give the full slide"
    return "give coordinates in level-0 pixels of this slide, or take these rows out"
