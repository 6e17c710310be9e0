"""Does the power of the objective, where a file names it, go with its µm per pixel? Only ever to warn.

A camera behind a 20x objective samples some 0.5 µm, behind a 40x one 0.25 µm: 10 µm over the power (Sellaro et al. 2013,
J Pathol Inform 4:21). Cameras differ, so the power never stands in for a resolution that is missing.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

UM_TIMES_POWER = 10.0
CONTRADICTS = 1.75
"""Times too fine or too coarse. 20x scanners of 0.46 µm/px and 40x ones of 0.17 are in use; who mistakes 20x for 40x is
off by 1.84 or more."""
BETWEEN_OBJECTIVE_AND_CAMERA = {"mirax"}
"""Vendors whose adapters magnify once more: their 20x slides have 0.23 µm/px, and nothing is wrong."""
NDPI_SOURCE_LENS = 65421
POWERS = 0.5, 250.0

Objective = tuple[float, str]
"""(its power, where the file names it)."""


def tiff_objective(tif: TiffFile, page: TiffPage, kind: str) -> Objective | None:
    """The objective that a TIFF slide names; None where it names none, or no number. kind: tifffile's name of the series."""
    if kind == "svs":
        found = re.search(r"\|\s*AppMag\s*=\s*([^|\s]+)", page.description)
        return believe_power(found and found.group(1), "AppMag")
    if kind == "ndpi":
        return believe_power(page.tags.valueof(NDPI_SOURCE_LENS), "SourceLens")
    return None


def believe_power(said: object, source: str) -> Objective | None:
    """(power, source) of what a file says as "20", "20.0" or "20x"; None of anything else."""
    try:
        power = float(str(said).strip().removesuffix("x").removesuffix("X"))
    except ValueError:
        return None
    return (power, source) if math.isfinite(power) and POWERS[0] <= power <= POWERS[1] else None


def contradiction(objective: Objective | None, vendor: str, mpp: float | None) -> str:
    """A sentence where µm per level-0 px and the objective are CONTRADICTS times apart or more; else ""."""
    if objective is None or mpp is None or vendor in BETWEEN_OBJECTIVE_AND_CAMERA:
        return ""
    power, source = objective
    usual = UM_TIMES_POWER / power
    times = max(mpp / usual, usual / mpp)
    if times < CONTRADICTS:
        return ""
    return (
        f"{mpp:.4g} µm/px is taken, though the slide names a {power:g}x objective ({source}), for which some "
        f"{usual:.3g} is usual: {times:.1f} times apart; check it (--mpp sets it)"
    )
