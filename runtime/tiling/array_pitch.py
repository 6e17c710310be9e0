"""Estimate µm/px from the known pitch of the spot array, and decide which source of µm/px wins."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.slide.base import Slide
from mclst.runtime.slide.metadata import MAX_MPP, MIN_MPP, objective_warning
from mclst.sections.columns import Columns
from mclst.sections.section import Section, Spots

MIN_SPOTS = 6
MAX_RESIDUAL = 0.15
"""RMS, as a fraction of the pitch: hand-printed legacy ST spots are 7-9 % off, Visium's below 1 %."""
MAX_SKEW = 0.05
VARIANTS = {
    "legacy-st": "legacy ST",
    "space-ranger": "Space Ranger",
    "h5ad": "AnnData",
    "spatialdata": "AnnData",
}
"""Variant of a spot table, by the format of a section: it tells the pitch of the array."""
COARSE_MPP = 1.0
"""µm per px above which a nucleus, some 8 µm wide, has too few pixels."""
TOLERANCE = 0.03
"""Relative difference up to which two values agree."""


@dataclass(frozen=True)
class ArrayFit:
    """A spot array fitted to a slide.

    mpp: µm per level-0 px. pitch_um: nominal distance between neighbors. residual_px: RMS distance of the
    spots from the array, level-0 px. spots: number fitted.
    """

    mpp: float
    pitch_um: float
    residual_px: float
    spots: int

    def __str__(self) -> str:
        return (
            f"{self.mpp:.4g} µm/px from the {self.pitch_um:g} µm pitch of {self.spots:,} spots, "
            f"fitted within {self.residual_px * self.mpp:.2g} µm"
        )


@dataclass(frozen=True)
class Resolution:
    """µm per level-0 px of a run, None if unknown; source: where from, for people; notes: warnings."""

    mpp: float | None
    source: str
    notes: tuple[str, ...] = ()


def fit_array(spots: Spots) -> ArrayFit | None:
    """Fit the spots' array to their pixel positions by least squares.

    Parameters
    ----------
    spots : Spots
        With array coordinates.

    Returns
    -------
    ArrayFit or None
        None if the array is unknown, or the spots do not fit it.

    Notes ----- (x, y) = A·(u, v) + b, with u, v the array coordinates in µm; mpp = 1/√|det A|; A must be a
    similarity within 5 %. A spot's diameter is no measure: Space Ranger adds a margin that differs between
    slides.
    """
    if spots.array_xy is None or len(spots) < MIN_SPOTS:
        return None
    layout = _layout(spots)
    if layout is None:
        return None
    step_um, pitch_um = layout
    array_um = np.column_stack([spots.array_xy * step_um, np.ones(len(spots))])
    transform, _, rank, _ = np.linalg.lstsq(array_um, spots.xy_px, rcond=None)
    if rank < 3:
        return None
    major, minor = np.linalg.svd(transform[:2], compute_uv=False)
    if minor <= 0 or major > minor * (1 + MAX_SKEW):
        return None
    mpp = float(1 / np.sqrt(major * minor))
    residual_px = float(np.sqrt(np.square(array_um @ transform - spots.xy_px).sum(axis=1).mean()))
    if not MIN_MPP <= mpp <= MAX_MPP or residual_px * mpp > MAX_RESIDUAL * pitch_um:
        return None
    return ArrayFit(mpp, pitch_um, residual_px, len(spots))


def _layout(spots: Spots) -> tuple[NDArray[np.float64], float] | None:
    """(µm per step of array x and y, pitch in µm) of a known array, else None.

    Legacy ST: 200 µm, square (Ståhl et al. 2016). Visium HD: in its barcodes. Visium: 100 µm, hexagonal; rows
    are 100·√3/2 µm apart and array_col counts half steps (10x Genomics, Visium slide layout).
    """
    if spots.array_xy is None:
        return None
    if spots.variant.startswith("legacy ST"):
        return np.array([200.0, 200.0]), 200.0
    bin_um = re.match(r"s_(\d{3})um_", str(spots.id[0]))
    if bin_um:
        side = float(bin_um[1])
        return (np.array([side, side]), side) if side > 0 else None
    if spots.variant.startswith(("Space Ranger", "AnnData")) and not (spots.array_xy.sum(axis=1) % 2).any():
        return np.array([50.0, 50.0 * 3**0.5]), 100.0
    return None


def slide_resolution(slide: Slide, spots: Spots, override: float | None = None) -> Resolution:
    """Choose µm/px: `override`, else the slide's, else that of the spots' files, else the spot array's.

    Parameters
    ----------
    slide : Slide
    spots : Spots
    override : float, optional
        The user's µm per level-0 px.

    Returns
    -------
    Resolution
        Its notes warn if another source differs by more than 3 %, if the slide does not say, or if the
        slide's objective contradicts the value.
    """
    mpp, source, note = _choose(slide, spots, override)
    doubt = objective_warning(slide.objective, slide.vendor, mpp)
    return Resolution(mpp, source, tuple(text for text in (note, doubt) if text))


def section_resolution(slide: Slide, section: Section, override: float | None = None) -> Resolution:
    """Choose µm/px of a measured section's image, as `slide_resolution` does."""
    return slide_resolution(slide, _spots_of(section), override)


def coarse_note(
    section: Section, mpp: float | None, size_px: int | None = None, tile_mpp: float | None = None
) -> str:
    """Say what a downscaled picture costs; "" for a slide. mpp: of the picture; size_px, tile_mpp: tiles'."""
    if section.image is None:
        return ""
    if section.image_scale >= 1:
        if mpp is None or mpp <= COARSE_MPP:
            return ""
        return (
            f"{section.image.name} of section {section.name} has {mpp:.3g} µm/px, so cells are not resolved; "
            f"--image {section.name}=SLIDE gives a finer slide"
        )
    of_tile = tile_mpp or mpp
    reach = "" if of_tile is None or size_px is None else f", a tile covers {size_px * of_tile:.0f} µm"
    size = "" if mpp is None else f" at {mpp:.3g} µm/px"
    cells = ", and cells are not resolved" if mpp is None or mpp > COARSE_MPP else ""
    return (
        f"section {section.name} has no slide; taken: {section.image.name}{size}, "
        f"{1 / section.image_scale:.3g} times coarser than the slide{reach}{cells}; "
        f"--image {section.name}=SLIDE gives the slide"
    )


def _spots_of(section: Section) -> Spots:
    """A section's spots with coordinates, as far as a fit of the array needs them."""
    xy_px = np.empty((0, 2)) if section.xy_px is None else section.xy_px
    known = np.flatnonzero(np.isfinite(xy_px).all(axis=1))
    array_xy = None if section.array_xy is None else section.array_xy[known]
    return Spots(
        path=section.path,
        variant=VARIANTS.get(section.format, ""),
        id=section.spot[known],
        xy_px=xy_px[known],
        array_xy=array_xy,
        row=known + 1,
        columns=Columns(range(len(known))),
        spot_diameter_px=None,
        coordinates="",
        mpp=section.mpp,
    )


def _choose(slide: Slide, spots: Spots, override: float | None) -> tuple[float | None, str, str]:
    """(mpp, source, "" or a warning)."""
    fit, stated = fit_array(spots), spots.mpp
    own = "" if stated is None else f"{stated:.4g} µm/px by the section's own files"
    sources = [(slide.mpp, slide.mpp_source), (stated, own), (None if fit is None else fit.mpp, str(fit))]

    def disagreeing(chosen: float) -> str:
        return " and ".join(source for mpp, source in sources if mpp is not None and _differ(mpp, chosen))

    if override is not None:
        others = disagreeing(override)
        note = f"--mpp says {override:g} µm/px and is taken, against {others}" if others else ""
        return override, "given", note
    if slide.mpp is not None:
        other = disagreeing(slide.mpp)
        choice = f"{slide.path.name} says {slide.mpp:.4g} µm/px ({slide.mpp_source}) and is taken"
        note = f"{choice}, against {other}; --mpp overrides both" if other else ""
        return slide.mpp, slide.mpp_source, note
    silent = f"{slide.path.name} does not say how large its pixels are; taken: "
    if stated is not None:
        return stated, "the section's own files", f"{silent}{own}; --mpp overrides it"
    if fit is None:
        return None, slide.mpp_source, ""
    return fit.mpp, "fitted to the array of spots", f"{silent}{fit}; --mpp overrides it"


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > TOLERANCE * min(one, other)
