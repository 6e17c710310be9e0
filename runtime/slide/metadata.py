"""How large a level-0 pixel is: µm per pixel from what a file says, believed only where believable."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from xml.etree import ElementTree

from tifffile import TiffFile, TiffPage

MIN_MPP, MAX_MPP = 0.05, 10.0
ANISOTROPY = 0.05

UM_PER_UNIT = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "\\u00b5m": 1.0,
    "nm": 1e-3,
    "inch": 25400.0,
}

Found = tuple[float, float, str]
"""(x µm/px, y µm/px, where it was found)."""


def believe(x: float, y: float, source: str) -> tuple[float | None, str]:
    """Accept mpp within 0.05-10 µm/px: (mean of x and y, source), else (None, why not)."""
    if not all(math.isfinite(value) and MIN_MPP <= value <= MAX_MPP for value in (x, y)):
        return None, f"none: {x:.4g} µm/px by {source} lies outside {MIN_MPP:g}-{MAX_MPP:g}"
    if abs(x - y) > ANISOTROPY * min(x, y):
        source = f"{source}, mean of {x:.4g} across and {y:.4g} down"
    return (x + y) / 2, source


def tiff_mpp(tif: TiffFile, page: TiffPage, kind: str) -> tuple[float | None, str]:
    """Find a TIFF slide's mpp: (µm per level-0 pixel or None, where from or why not).

    kind: tifffile's name of the series ("svs", "ome", "philips", "ndpi", …). The vendor's own word goes first,
    the TIFF resolution tags last.
    """
    refused = "the file says none"
    readers: dict[str, Callable[[TiffFile, TiffPage], Found | None]] = {
        "svs": _aperio, "ome": _ome, "philips": _philips, "imagej": _imagej,
    }  # fmt: skip
    for read in (readers.get(kind), _resolution_tags):
        found = read(tif, page) if read else None
        if found is None:
            continue
        mpp, source = believe(*found)
        if mpp is not None:
            return mpp, source
        refused = source
    return None, refused


def _aperio(tif: TiffFile, page: TiffPage) -> Found | None:
    match = re.search(r"\|\s*MPP\s*=\s*([^|\s]+)", page.description)
    value = _number(match.group(1)) if match else None
    return None if value is None else (value, value, "Aperio MPP")


def _ome(tif: TiffFile, page: TiffPage) -> Found | None:
    root = _xml(tif.ome_metadata)
    if root is None:
        return None
    for pixels in root.iter():
        if not pixels.tag.endswith("}Pixels") and pixels.tag != "Pixels":
            continue
        size = (pixels.get("SizeX"), pixels.get("SizeY"))
        x, y = (_number(pixels.get(f"PhysicalSize{axis}")) for axis in "XY")
        units = [UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"]
        if size == (str(page.imagewidth), str(page.imagelength)) and x is not None and units[0] is not None:
            y_um = y * units[1] if y is not None and units[1] is not None else x * units[0]
            return x * units[0], y_um, "OME PhysicalSizeX"
    return None


def _philips(tif: TiffFile, page: TiffPage) -> Found | None:
    root = _xml(tif.philips_metadata)
    if root is None:
        return None
    for element in root.iter("Attribute"):
        if element.get("Name") == "DICOM_PIXEL_SPACING":
            values = [_number(word) for word in (element.text or "").replace('"', " ").split()]
            if len(values) == 2 and values[0] is not None and values[1] is not None:
                return values[1] * 1000, values[0] * 1000, "Philips pixel spacing"
    return None


def _imagej(tif: TiffFile, page: TiffPage) -> Found | None:
    unit = UM_PER_UNIT.get(str((tif.imagej_metadata or {}).get("unit", "")).lower())
    x, y = _tag_ratio(page, "XResolution"), _tag_ratio(page, "YResolution")
    return None if unit is None or not x or not y else (unit / x, unit / y, "ImageJ scale")


def _resolution_tags(tif: TiffFile, page: TiffPage) -> Found | None:
    per_unit = {2: UM_PER_UNIT["inch"], 3: UM_PER_UNIT["cm"]}
    tag = page.tags.get("ResolutionUnit")
    # TIFF 6.0: inch where the tag is missing; 1 says that the numbers are a mere aspect ratio.
    unit = per_unit.get(2 if tag is None else int(tag.value))
    x, y = _tag_ratio(page, "XResolution"), _tag_ratio(page, "YResolution")
    return None if unit is None or not x or not y else (unit / x, unit / y, "TIFF resolution tags")


def _tag_ratio(page: TiffPage, name: str) -> float | None:
    tag = page.tags.get(name)
    if tag is None:
        return None
    value = tag.value
    if isinstance(value, tuple):
        if len(value) != 2 or not value[1]:
            return None
        return float(Fraction(int(value[0]), int(value[1])))
    return _number(str(value))


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", "."))
    except ValueError:
        return None


def _xml(text: str | None) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(text) if text else None
    except ElementTree.ParseError:
        return None


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
