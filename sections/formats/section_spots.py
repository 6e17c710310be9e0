"""Spots of a measured section: where its cells, bins or pseudo-spots lie on a slide or a picture of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mclst.sections.columns import Columns
from mclst.sections.errors import SectionError
from mclst.sections.formats import spaceranger, spatialdata_store, visium_hd, xenium
from mclst.sections.formats.hest_patches import patches_of, spots_on_patches
from mclst.sections.formats.images import SCALES, picture_scale
from mclst.sections.formats.reference import read_section
from mclst.sections.location import SlideLocation
from mclst.sections.section import Spots

VARIANTS = {"xenium": "Xenium", "spatialdata": "AnnData", "space-ranger": "Visium HD"}


def section_spots(folder: Path, slide: SlideLocation | None = None, bins: str | None = None) -> Spots | None:
    """Read the spots of a Xenium bundle, a SpatialData store or a top folder of Visium HD.

    Parameters
    ----------
    folder : Path
    slide : Path or RemoteLocation, optional
        The slide to predict. The alignment of a bundle is looked for by its name; the spots of a store are
        put on it, be it an image of the store or a slide elsewhere (see `spatialdata_store.read`).
    bins : str, optional
        See `find_sections`.

    Returns
    -------
    Spots or None
        None if the folder is none of these.

    Raises
    ------
    SectionError
        If the section cannot be read, or its place on the slide is unknown.
    """
    source = xenium.source_of(folder, bins) or spatialdata_store.source_of(folder, bins)
    if source is None and visium_hd.top_of(folder) is not None:
        source = spaceranger.source_of(folder, bins)
    if source is None:
        return None
    if slide is not None and source.format in ("xenium", "spatialdata"):
        source = replace(source, image=slide)
    section = read_section(source)
    if section.xy_px is None:
        raise SectionError(f"{folder}: the place of its spots on a slide is unknown; give its alignment")
    places = () if section.array_xy is None else section.array_xy.T
    aligned = xenium.alignment_of(source) if source.format == "xenium" else None
    note = "" if aligned is None else f", aligned by {aligned.name}"
    array = dict(zip(("array_col", "array_row"), places, strict=False))
    return Spots(
        path=section.path,
        variant=VARIANTS[source.format],
        id=section.spot,
        xy_px=section.xy_px,
        array_xy=section.array_xy,
        row=np.arange(1, len(section) + 1, dtype=np.int64),
        columns=Columns(range(len(section)), array),
        spot_diameter_px=None,
        coordinates=f"spots of section {section.name}, {source.bins or 'its own'} as x, y in level-0 px"
        + note,
        mpp=section.mpp,
    )


def on_picture(spots: Spots, slide: Path) -> Spots:
    """Put spots on Space Ranger's picture beside their table, or on HEST's patches; else leave them.

    Raises SectionError if the picture's scale is unknown, or no spot has a patch.
    """
    if (patches := patches_of(slide)) is not None:
        return spots_on_patches(spots, patches)
    if slide.name not in SCALES or slide.absolute().parent != spots.path.absolute().parent:
        return spots
    scale = picture_scale(slide)
    diameter = spots.spot_diameter_px
    return replace(
        spots,
        xy_px=spots.xy_px * scale,
        spot_diameter_px=None if diameter is None else diameter * scale,
        coordinates=f"{spots.coordinates}, times {scale:.4g} for {slide.name}",
    )
