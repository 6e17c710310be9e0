"""Check, before any tile is cut, that the spots' centers are on the slide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import SpotsError
from mclst.runtime.slide.base import Slide
from mclst.sections.section import Spots
from mclst.sections.tables.geojson import GEOJSON_CELLS
from mclst.sections.tables.layouts import QUPATH_MEASUREMENTS, SEURAT_COORDINATES

PICTURES = ("tissue_hires_image.png", "tissue_lowres_image.png")
HIRES_PX = (600, 2000, 4000, 6000)
"""Longest sides of Space Ranger's downscaled images, which users often pass as the slide."""

SEURAT_PX = (600, 2000)
"""Longest sides of the pictures to which Seurat scales coordinates: scale = "lowres", "hires"."""
MUCH_LARGER = 3
"""Times a picture's side: a slide on which spots do not all lie within that side of its corner."""

OF_QUPATH = (GEOJSON_CELLS, QUPATH_MEASUREMENTS)
"""Variants of spots that QuPath exports."""


def check_spots(spots: Spots, slide: Slide) -> None:
    """Raise SpotsError if a spot's center is outside the slide; name the first spot and a likely cause.

    Seurat's coordinates are refused, too, if they are pixels of one of Space Ranger's pictures.
    """
    _require_full_resolution(spots, slide)
    check_centers(
        spots.xy_px, slide, lambda row: f"{spots.path}, line {spots.row[row]}: spot {spots.id[row]}"
    )


def _require_full_resolution(spots: Spots, slide: Slide) -> None:
    """Refuse what GetTissueCoordinates of Seurat 3 and 4 scales: no row and col, 'lowres' by default."""
    if spots.variant != SEURAT_COORDINATES or spots.array_xy is not None:
        return
    longest = max(slide.width_px, slide.height_px)
    for side in SEURAT_PX if len(spots) else ():
        if spots.xy_px.max() <= side and longest > MUCH_LARGER * side:
            raise SpotsError(
                f"{spots.path}: no imagerow or imagecol is above {side}, and {slide.path.name} has "
                f"{slide.width_px} x {slide.height_px} px: Seurat scaled them to a small picture; export "
                "them by GetTissueCoordinates(object, scale = NULL), or name pixels of this slide x_px and "
                "y_px"
            )


def border_note(slide: Slide, spots: Spots | None, region: Path | None) -> str:
    """Say that QuPath may have counted the positions of spots or a region from elsewhere; "" if not."""
    theirs = [spots.path.name] if spots is not None and spots.variant in OF_QUPATH else []
    theirs += [region.name] if region is not None else []
    if slide.border_px == (0, 0) or not theirs:
        return ""
    left, top = slide.border_px
    return (
        f"{slide.path.name} begins with an empty border of {left} x {top} px, which QuPath leaves out unless "
        f"it is started with --no-crop; {' and '.join(theirs)} must count from the corner of the border"
    )


def check_centers(xy_px: NDArray[np.float64], slide: Slide, describe: Callable[[int], str]) -> None:
    """Check centers of any origin; whoever cuts tiles at given places calls this or `check_spots` first.

    Parameters
    ----------
    xy_px : ndarray of float64, shape (n, 2)
        Level-0 px (x, y). Rows with NaN, spots without coordinates, are left alone.
    slide : Slide
    describe : callable
        Row → file and spot, for the message.

    Raises
    ------
    SpotsError
        If a center is outside the slide; names the first one, their number and a likely cause.
    """
    known = np.isfinite(xy_px).all(axis=1)
    outside = known & ~_inside(xy_px, slide.width_px, slide.height_px)
    if not outside.any():
        return
    first = int(np.flatnonzero(outside)[0])
    x, y = xy_px[first]
    others = int(outside.sum()) - 1
    more = f", as are {others:,} more of {len(xy_px):,}" if others else ""
    raise SpotsError(
        f"{describe(first)} at x {x:g}, y {y:g} is outside "
        f"{slide.path.name} ({slide.width_px} x {slide.height_px} px){more}; {_hint(xy_px[known], slide)}"
    )


def _inside(xy: NDArray[np.float64], width: int, height: int) -> NDArray[np.bool_]:
    return (xy >= 0).all(axis=1) & (xy[:, 0] < width) & (xy[:, 1] < height)


def _hint(xy: NDArray[np.float64], slide: Slide) -> str:
    if _inside(xy[:, ::-1], slide.width_px, slide.height_px).all():
        return "x and y exchanged would fit: check the columns"
    if slide.path.name in PICTURES and not _inside(xy, slide.width_px, slide.height_px).any():
        return (
            "the picture is not the one that Space Ranger scaled the positions to, but a part: give the slide"
        )
    longest = max(slide.width_px, slide.height_px)
    if (xy >= 0).all() and xy.max() > longest and longest in HIRES_PX:
        return "the slide is a downscaled image and the spots are full-resolution pixels: give the full slide"
    return "give coordinates in level-0 pixels of this slide, or take these rows out"
