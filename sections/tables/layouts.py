"""Detect which columns of a spot table hold the pixel coordinates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mclst.sections.errors import SectionError, UnknownColumns

ID_COLUMNS = ("id", "barcode", "spot", "cell", "name", "spot_id", "cell_id", "")
SEURAT_COORDINATES = "Seurat coordinates"
SEURAT_5_COLUMNS = {"x", "y", "cell"}
"""Of GetTissueCoordinates of a VisiumV2: x is imagerow in released versions (satijalab/seurat-object#229) and
imagecol in newer ones (satijalab/seurat#10476)."""
XENIUM_EXPERIMENT = "experiment.xenium"
XENIUM_CENTROID = ("x_centroid", "y_centroid")
QUPATH_MEASUREMENTS = "QuPath measurements"
QUPATH_IDS = ("object id", "id")
SPACE_RANGER_COLUMNS = (
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
)
BARCODE = re.compile(r"[ACGTN]{12,}(-\d+)?|s_\d+um_\d+_\d+(-\d+)?", re.ASCII)


@dataclass(frozen=True)
class Layout:
    """Columns of one spot table format, in lower case.

    x, y: the spot's center in level-0 px; x runs along the slide's width, which Space Ranger calls a column.
    array: columns with the array coordinates (x, y), used if both exist.
    flags: columns that are 0 for spots to skip.
    ids_from_array: name spots without an id `XxY`.
    um: x and y are µm from the slide's corner. ids: columns with the spots' names, the first that is there.
    """

    variant: str
    x: str
    y: str
    array: tuple[str, str] = ("array_col", "array_row")
    flags: tuple[str, ...] = ("in_tissue", "selected")
    ids_from_array: bool = False
    um: bool = False
    ids: tuple[str, ...] = ID_COLUMNS


SPACE_RANGER = Layout("Space Ranger 2", "pxl_col_in_fullres", "pxl_row_in_fullres")
LEGACY_ST = Layout("legacy ST selection", "pixel_x", "pixel_y", array=("x", "y"), ids_from_array=True)
LAYOUTS = (
    SPACE_RANGER,
    Layout(SEURAT_COORDINATES, "imagecol", "imagerow", ("col", "row"), ("in_tissue", "selected", "tissue")),
    Layout("pixel table", "x_px", "y_px"),
    Layout("pixel table", "pixel_x", "pixel_y"),
    Layout("pixel table", "x_pixel", "y_pixel"),
    Layout("ST pixel table", "he_x", "he_y"),
    Layout("plain x, y table", "x", "y"),
    *(
        Layout(
            QUPATH_MEASUREMENTS, f"centroid x {unit}", f"centroid y {unit}", um=unit != "px", ids=QUPATH_IDS
        )
        for unit in ("\u03bcm", "um", "px")  # a folded MICRO SIGN is the Greek letter
    ),
    Layout("table in µm", "x_um", "y_um", um=True),
    Layout("table in µm", *XENIUM_CENTROID, um=True),
)


def space_ranger_1(first: list[str]) -> list[str] | None:
    """Columns of a Space Ranger 1 positions file, which has no header; None for any other first line."""
    if len(first) == len(SPACE_RANGER_COLUMNS) and BARCODE.fullmatch(first[0].strip()):
        return list(SPACE_RANGER_COLUMNS)
    return None


def detect_layout(path: Path, names: Sequence[str]) -> Layout:
    """Detect the layout from a table's column names (any case).

    Raises SectionError listing the table's columns and the accepted ones. Tables with array coordinates
    only get their own message, since these look like pixels; so do those of a Xenium bundle, whose µm are not
    the slide's.
    """
    available = {name.casefold() for name in names}
    legacy = {"x", "y", "pixel_x", "pixel_y"} <= available
    if legacy and ({"new_x", "new_y"} <= available or not available & set(ID_COLUMNS)):
        return LEGACY_ST
    if {"x", "y", "new_x", "new_y"} <= available and not legacy:
        raise SectionError(
            f"{path}: x, y, new_x and new_y are array coordinates, and there is no pixel_x and pixel_y; "
            "give the selection table that has the pixels"
        )
    for layout in LAYOUTS:
        if {layout.x, layout.y} <= available:
            if layout.x in XENIUM_CENTROID and path.is_file() and path.with_name(XENIUM_EXPERIMENT).is_file():
                raise SectionError(
                    f"{path} is in a Xenium bundle, whose µm are of the morphology image, not of the H&E "
                    "slide; give the bundle's folder instead, whose alignment leads to the slide"
                )
            return layout
    raise UnknownColumns(_unknown_columns(path, names))


def _unknown_columns(path: Path, names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12]) + (", …" if len(names) > 12 else "")
    if all(re.fullmatch(r"\s*[-+]?[\d.]+([eE][-+]?\d+)?\s*", name) for name in names):
        return f"{path}: the first line holds numbers ({shown}) instead of column names; add a header line"
    accepted = "; ".join(f"{layout.x}, {layout.y}" for layout in LAYOUTS)
    return (
        f"{path}: no columns with the spots' pixels among {shown} (delimited by tab, semicolon or comma); "
        f"accepted pairs are {accepted}"
    )
