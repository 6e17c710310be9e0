"""Pixel size and objective power from a slide's metadata, checked for plausibility."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MIN_MPP, MAX_MPP = 0.05, 10.0
ANISOTROPY = 0.05
UM_TIMES_POWER = 10.0
"""µm/px times objective power of usual scanners: 0.5 at 20x, 0.25 at 40x."""
CONTRADICTS = 1.75
"""Factor too fine or too coarse. 20x scanners of 0.46 µm/px and 40x ones of 0.17 exist; taking 20x for 40x is
off by 1.84 or more."""
MAGNIFYING_CAMERA_ADAPTER = {"mirax"}
"""Vendors whose adapters magnify once more: their 20x slides rightly have 0.23 µm/px."""
NDPI_SOURCE_LENS = 65421
MIN_POWER, MAX_POWER = 0.5, 250.0

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
    # As OME-Zarr spells them (UDUNITS-2).
    "meter": 1e6,
    "centimeter": 1e4,
    "millimeter": 1e3,
    "micrometer": 1.0,
    "nanometer": 1e-3,
    "angstrom": 1e-4,
}

PixelSize = tuple[float, float, str]
"""(x µm/px, y µm/px, source)."""
Objective = tuple[float, str]
"""(power, source)."""


def has_entities(description: object) -> bool:
    """Whether an image description declares XML entities, in UTF-8 or UTF-16.

    No slide needs them, and a long chain of them crashes Expat before 2.7 (CVE-2024-8176).
    """
    text = str(description, "latin-1") if isinstance(description, bytes) else str(description)
    text = text.replace("\0", "")
    return "<!DOCTYPE" in text or "<!ENTITY" in text


def check_mpp(x: float, y: float, source: str) -> tuple[tuple[float, float] | None, str]:
    """((x, y), source) if both are within 0.05-10 µm/px, else (None, why not)."""
    if not all(math.isfinite(value) and MIN_MPP <= value <= MAX_MPP for value in (x, y)):
        return None, f"none: {x:.4g} µm/px by {source} is outside {MIN_MPP:g}-{MAX_MPP:g}"
    if abs(x - y) > ANISOTROPY * min(x, y):
        source = f"{source}, mean of {x:.4g} across and {y:.4g} down"
    return (x, y), source


def tiff_mpp(tif: TiffFile, page: TiffPage, kind: str) -> tuple[tuple[float, float] | None, str]:
    """Find a TIFF slide's mpp: (µm per level-0 px along x and y or None, source or why not).

    kind: tifffile's name of the series ("svs", "ome", "philips", "ndpi", …). The vendor's metadata take
    precedence over the TIFF resolution tags.
    """
    reason = "the file says none"
    readers: dict[str, Callable[[TiffFile, TiffPage], PixelSize | None]] = {
        "svs": _aperio,
        "ome": _ome,
        "philips": _philips,
        "imagej": _imagej,
    }
    for read in (readers.get(kind), _resolution_tags):
        size = read(tif, page) if read else None
        if size is None:
            continue
        mpp, source = check_mpp(*size)
        if mpp is not None:
            return mpp, source
        reason = source
    return None, reason


def _aperio(tif: TiffFile, page: TiffPage) -> PixelSize | None:
    match = re.search(r"\|\s*MPP\s*=\s*([^|\s]+)", page.description)
    value = _number(match.group(1)) if match else None
    return None if value is None else (value, value, "Aperio MPP")


def _ome(tif: TiffFile, page: TiffPage) -> PixelSize | None:
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


def _philips(tif: TiffFile, page: TiffPage) -> PixelSize | None:
    root = _xml(tif.philips_metadata)
    if root is None:
        return None
    for element in root.iter("Attribute"):
        if element.get("Name") == "DICOM_PIXEL_SPACING":
            values = [_number(word) for word in (element.text or "").replace('"', " ").split()]
            if len(values) == 2 and values[0] is not None and values[1] is not None:
                return values[1] * 1000, values[0] * 1000, "Philips pixel spacing"
    return None


def _imagej(tif: TiffFile, page: TiffPage) -> PixelSize | None:
    unit = UM_PER_UNIT.get(str((tif.imagej_metadata or {}).get("unit", "")).lower())
    x, y = _tag_ratio(page, "XResolution"), _tag_ratio(page, "YResolution")
    return None if unit is None or not x or not y else (unit / x, unit / y, "ImageJ scale")


def _resolution_tags(tif: TiffFile, page: TiffPage) -> PixelSize | None:
    per_unit = {2: UM_PER_UNIT["inch"], 3: UM_PER_UNIT["cm"]}
    tag = page.tags.get("ResolutionUnit")
    # TIFF 6.0: inch if the tag is missing; unit 1 means that the numbers are only an aspect ratio.
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


def tiff_objective(page: TiffPage, kind: str) -> Objective | None:
    """Objective of a TIFF slide, None if it names none; kind: tifffile's name of the series."""
    if kind == "svs":
        match = re.search(r"\|\s*AppMag\s*=\s*([^|\s]+)", page.description)
        return parse_power(match and match.group(1), "AppMag")
    if kind == "ndpi":
        return parse_power(page.tags.valueof(NDPI_SOURCE_LENS), "SourceLens")
    return None


def parse_power(value: object, source: str) -> Objective | None:
    """(power, source) of a value such as "20", "20.0" or "20x"; None of anything else."""
    try:
        power = float(str(value).strip().removesuffix("x").removesuffix("X"))
    except ValueError:
        return None
    return (power, source) if math.isfinite(power) and MIN_POWER <= power <= MAX_POWER else None


def objective_warning(objective: Objective | None, vendor: str, mpp: float | None) -> str:
    """A sentence if µm per level-0 px and the objective contradict each other, else ""."""
    if objective is None or mpp is None or vendor in MAGNIFYING_CAMERA_ADAPTER:
        return ""
    power, source = objective
    usual = UM_TIMES_POWER / power
    factor = max(mpp / usual, usual / mpp)
    if factor < CONTRADICTS:
        return ""
    return (
        f"{mpp:.4g} µm/px is taken, though the slide names a {power:g}x objective ({source}), for which some "
        f"{usual:.3g} is usual: {factor:.1f} times apart; check it (--mpp sets it)"
    )
