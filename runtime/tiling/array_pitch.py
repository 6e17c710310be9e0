"""How large a level-0 pixel is, told from the spots: the array they lie on has a known pitch.

Pitches: Visium 100 µm between centres, rows 100·√3/2 µm apart and every other one shifted by half, so that array_col
counts half steps (10x Genomics, Visium slide layout); legacy ST 200 µm, square (Ståhl et al. 2016); Visium HD as its
barcodes say. Never from a spot's diameter, which Space Ranger gives with a margin that differs between slides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.slide.base import Slide
from mclst.runtime.slide.metadata import MAX_MPP, MIN_MPP, contradiction
from mclst.sections.section import Spots

LEAST_SPOTS = 6
LARGEST_RESIDUAL = 0.15
"""Of the pitch, root mean square: legacy ST spots were printed by hand and lie 7-9 % off, Visium's under 1 %."""
LARGEST_SKEW = 0.05
AGREES = 0.03
"""Two figures closer than this are the same."""


@dataclass(frozen=True)
class ArrayFit:
    """An array laid over a slide.

    mpp: µm per level-0 px. pitch_um: between neighbours, the array's own. residual_px: root mean square distance
    of the spots from their places on it, level-0 px. spots: how many were fitted.
    """

    mpp: float
    pitch_um: float
    residual_px: float
    spots: int

    def __str__(self) -> str:
        return (
            f"{self.mpp:.4g} µm/px by the {self.pitch_um:g} µm pitch of {self.spots:,} spots, "
            f"which lie {self.residual_px * self.mpp:.2g} µm off it"
        )


@dataclass(frozen=True)
class Resolution:
    """The µm per level-0 px that a run takes: None where nobody knows; source: whose word it is; notes: what to know."""

    mpp: float | None
    source: str
    notes: tuple[str, ...] = ()


def fit_array(spots: Spots) -> ArrayFit | None:
    """Fit the spots' array to their pixels by least squares; None where they have no array, or do not lie on it.

    x, y = A·(u, v) + b, with u, v the array coordinates in µm; mpp = 1/√|det A|. A must be a similarity within 5 %.
    """
    layout = _layout(spots)
    if layout is None or spots.array_xy is None or len(spots) < LEAST_SPOTS:
        return None
    step_um, pitch_um = layout
    place_um = np.column_stack([spots.array_xy * step_um, np.ones(len(spots))])
    found, _, rank, _ = np.linalg.lstsq(place_um, spots.xy_px, rcond=None)
    if rank < 3:
        return None
    across, along = np.linalg.svd(found[:2], compute_uv=False)
    if along <= 0 or across > along * (1 + LARGEST_SKEW):
        return None
    mpp = float(1 / np.sqrt(across * along))
    residual_px = float(np.sqrt(np.square(place_um @ found - spots.xy_px).sum(axis=1).mean()))
    if not MIN_MPP <= mpp <= MAX_MPP or residual_px * mpp > LARGEST_RESIDUAL * pitch_um:
        return None
    return ArrayFit(mpp, pitch_um, residual_px, len(spots))


def _layout(spots: Spots) -> tuple[NDArray[np.float64], float] | None:
    """(µm per step of array x and y, pitch in µm) of an array that is known."""
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


def slide_resolution(slide: Slide, spots: Spots, given: float | None = None) -> Resolution:
    """Whose µm/px counts: `given` before what the file says before what the spots' array says.

    The notes say where another of them differs by more than 3 %, or that the array's word alone is there; and where the
    slide's objective contradicts it.
    """
    mpp, source, note = _taken(slide, spots, given)
    doubt = contradiction(slide.objective, slide.vendor, mpp)
    return Resolution(mpp, source, tuple(text for text in (note, doubt) if text))


def _taken(slide: Slide, spots: Spots, given: float | None) -> tuple[float | None, str, str]:
    """(mpp, whose word it is, "" or what to know of it)."""
    fit = fit_array(spots)
    said = [(slide.mpp, slide.mpp_source), (None if fit is None else fit.mpp, str(fit))]

    def against(taken: float) -> str:
        return " and ".join(source for mpp, source in said if mpp is not None and _differ(mpp, taken))

    if given is not None:
        others = against(given)
        return given, "given", f"--mpp says {given:g} µm/px and is taken, against {others}" if others else ""
    if slide.mpp is not None:
        other = against(slide.mpp)
        says = f"{slide.path.name} says {slide.mpp:.4g} µm/px ({slide.mpp_source}) and is taken"
        return slide.mpp, slide.mpp_source, f"{says}, against {other}; --mpp overrides both" if other else ""
    if fit is None:
        return None, slide.mpp_source, ""
    note = f"{slide.path.name} does not say how large its pixels are; taken: {fit}; --mpp overrides it"
    return fit.mpp, "fitted to the array of spots", note


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > AGREES * min(one, other)
