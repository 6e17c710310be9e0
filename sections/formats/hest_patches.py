"""HEST-1k's patches: `patches/ID.h5`, the tiles around a sample's spots, which stand in for its slide.

Layout: mahmoodlab/HEST, `dump_patches`, and hestcore, `WSIPatcher.to_h5`: `img` uint8 [n, S, S, 3]; `coords`
int [n, 2], upper left corners in level-0 px of the slide; `barcode` [n, 1]. Attributes of `coords`:
`pixel_size`, µm per level-0 px; `downsample`, level-0 px per px of a patch; `patch_size_src`, side in level-0
px.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.formats.hest import mpp_of_sample
from mclst.sections.hdf5 import name_array, open_hdf5
from mclst.sections.location import SlideLocation, local_path
from mclst.sections.section import Section, Spots

PIXELS, CORNERS, NAMES = "img", "coords", "barcode"
MAX_SIDE_PX = 4096
MAX_EXTENT_PX = 1 << 20
OFF_CENTER_PX = 3.0
"""Level-0 px between a spot and the middle of its patch: corners and half sides are whole numbers."""
AGAIN = "download the sample again, or give its slide"


@dataclass(frozen=True)
class Patches:
    """Where patches lie in a picture of their own scale.

    Attributes
    ----------
    path : Path
    name : ndarray of str, shape (n,)
        Barcodes, unique.
    corners : ndarray of int64, shape (n, 2)
        Upper left (x, y), px of the picture, 0 or more.
    side_px : int
    scale : float
        Px of the picture per level-0 px of the slide.
    mpp : float
        µm per px of the picture.
    slide_centers : ndarray of float64, shape (n, 2)
        Middles (x, y), level-0 px of the slide.
    """

    path: Path
    name: NDArray[np.str_]
    corners: NDArray[np.int64]
    side_px: int
    scale: float
    mpp: float
    slide_centers: NDArray[np.float64]

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the picture."""
        width, height = (self.corners.max(axis=0) + self.side_px).tolist()
        return width, height

    @property
    def centers(self) -> NDArray[np.float64]:
        """Middles (x, y), px of the picture, float64 [n, 2]."""
        return self.corners.astype(np.float64) + self.side_px // 2


def patches_of(image: SlideLocation | None) -> Patches | None:
    """Read the places of patches, if a section's image is such a file; raises as `read_patches` does."""
    path = local_path(image)
    return read_patches(path) if path is not None and path.is_file() and h5py.is_hdf5(path) else None


def read_patches(path: Path) -> Patches:
    """Read where patches lie, without their pixels.

    Raises SectionError if the file holds no patches, or does not say where they lie and at what scale.
    """
    with open_hdf5(path, "HEST's patches") as file:
        missing = [name for name in (PIXELS, CORNERS, NAMES) if not isinstance(file.get(name), h5py.Dataset)]
        if missing:
            raise SectionError(
                f"{path}: there is no {missing[0]}; patches are {PIXELS}, {CORNERS} and {NAMES}, as HEST-1k "
                "has them since August 2024"
            )
        pixels, count = file[PIXELS], len(file[CORNERS])
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[0] != count or not count:
            raise SectionError(f"{path}: {PIXELS} is {pixels.dtype} {pixels.shape}; give uint8 [n, S, S, 3]")
        side = pixels.shape[1]
        if pixels.shape[1:] != (side, side, 3) or not 1 <= side <= MAX_SIDE_PX:
            raise SectionError(f"{path}: patches are {pixels.shape[1:]}; give squares of three channels")
        given = np.asarray(file[CORNERS][:], np.float64)
        name = name_array(np.asarray(file[NAMES][:]).ravel(), path)
        attributes = dict(file[CORNERS].attrs)
    if given.shape != (count, 2) or len(name) != count or not np.isfinite(given).all():
        raise SectionError(f"{path}: {CORNERS} and {NAMES} do not belong to the {count} patches; {AGAIN}")
    if len(np.unique(name)) < count:
        raise SectionError(f"{path}: a barcode has two patches; {AGAIN}")
    downsample, mpp, src = _scale(path, attributes, side)
    corners = np.rint(given / downsample)
    corners -= np.minimum(corners.min(axis=0), 0)
    if corners.max() > MAX_EXTENT_PX:
        raise SectionError(f"{path}: patches are {int(corners.max()):,} px apart; {AGAIN}")
    return Patches(path, name, corners.astype(np.int64), side, 1 / downsample, mpp, given + src / 2)


def _scale(path: Path, attributes: dict[str, Any], side: int) -> tuple[float, float, float]:
    """Level-0 px per px of a patch, µm per px of a patch, side of a patch in level-0 px."""
    src = _positive(attributes.get("patch_size_src"))
    downsample = _positive(attributes.get("downsample")) or (src and src / side)
    slide_mpp = _positive(attributes.get("pixel_size")) or mpp_of_sample(path)
    if downsample is None or slide_mpp is None:
        raise SectionError(
            f"{path}: the patches do not say at what scale they are (patch_size_src or downsample, and "
            f"pixel_size of {CORNERS}); {AGAIN}"
        )
    return downsample, round(downsample * slide_mpp, 6), src or downsample * side


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def section_on_patches(section: Section, patches: Patches) -> Section:
    """Put a section's spots on their own patches; those without one get NaN.

    Raises SectionError if no spot has a patch, or the patches lie elsewhere.
    """
    rows, known = _match(section.spot, patches, str(section.path))
    if section.xy_px is not None:
        off = np.abs(section.xy_px[known] - patches.slide_centers[rows[known]]).max(axis=1)
        if (wrong := off > OFF_CENTER_PX).any():
            first = int(np.flatnonzero(known)[np.argmax(wrong)])
            raise SectionError(
                f"{patches.path}: {np.count_nonzero(wrong)} of {len(off)} patches do not lie around their "
                f"spots of {section.path.name}, the first is {section.spot[first]}; {AGAIN}"
            )
    xy_px = np.full((len(section), 2), np.nan)
    xy_px[known] = patches.centers[rows[known]]
    return replace(section, xy_px=xy_px, image_scale=patches.scale, mpp=patches.mpp)


def spots_on_patches(spots: Spots, patches: Patches) -> Spots:
    """Put spots on their own patches and leave out those without one; SectionError if none is left."""
    rows, known = _match(spots.id, patches, str(spots.path))
    without = len(known) - int(known.sum())
    note = f", {without:,} without a patch left out" if without else ""
    diameter = spots.spot_diameter_px
    return replace(
        spots.take(known),
        xy_px=patches.centers[rows[known]],
        spot_diameter_px=None if diameter is None else diameter * patches.scale,
        coordinates=f"the patches of {patches.path.name}, by barcode{note}",
        mpp=patches.mpp,
    )


def _match(
    names: NDArray[np.str_], patches: Patches, whose: str
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Row of each spot's patch, and whether it has one."""
    rows = pd.Index(patches.name).get_indexer(pd.Index(names))
    known = rows >= 0
    if not known.any():
        raise SectionError(
            f"{patches.path}: no patch has the barcode of a spot of {whose}; give its own file"
        )
    return rows, known
