"""Visium HD: bins of one size, or segmented cells, of Space Ranger's top folder.

Layout (Space Ranger 3 and 4): `binned_outputs/square_{002,008,016}um/`, each like a Space Ranger folder, and
`segmented_outputs/` with `filtered_feature_cell_matrix.h5` and `cell_segmentations.geojson`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.formats.source import SectionSource, list_folder
from mclst.sections.tables.geojson import read_cells

BINNED, SEGMENTED = "binned_outputs", "segmented_outputs"
CELLS = "cells"
DEFAULT_BIN = "8"
"""10x Genomics' recommendation; 2 µm bins hold few counts each."""
SIZE = re.compile(r"[1-9]\d{0,2}", re.ASCII)
SQUARE = re.compile(r"square_(\d{3})um", re.ASCII)
CELL_MATRIX, CELL_OUTLINES = "filtered_feature_cell_matrix.h5", "cell_segmentations.geojson"
CELL_NAME = re.compile(r"cellid_0*(\d+)(-\d+)?", re.ASCII)


def top_of(folder: Path) -> Path | None:
    """The folder that holds binned or segmented outputs: `folder` or its `outs/`; None if neither does."""
    for parent in (folder, folder / "outs"):
        if (parent / BINNED).is_dir() or (parent / SEGMENTED).is_dir():
            return parent
    return None


def choose_folder(top: Path, bins: str) -> tuple[Path, int]:
    """The folder of the bins asked for, and how many of its bins make one along an axis.

    bins: µm of a bin, or "cells". Raises SectionError naming what is there.
    """
    if bins == CELLS:
        if not (top / SEGMENTED / CELL_MATRIX).is_file():
            raise SectionError(f"{top}: there is no {SEGMENTED}/{CELL_MATRIX}; give --bin 8 or another size")
        return top / SEGMENTED, 1
    entries = list_folder(top / BINNED) if (top / BINNED).is_dir() else []
    sizes = {int(match[1]): entry for entry in entries if (match := SQUARE.fullmatch(entry.name))}
    if not SIZE.fullmatch(bins):
        raise SectionError(
            f"{top}: --bin {bins[:20]} is no bin of Visium HD (PITCH/DIAMETER is for Xenium); give whole µm "
            "from 1 to 999, such as 8, or cells"
        )
    size = int(bins)
    divisors = [have for have in sizes if have and size % have == 0]
    if not divisors:
        listed = ", ".join(f"{have}" for have in sorted(sizes)) or "none"
        raise SectionError(
            f"{top}: no bins make {size} µm; there are {listed} µm: give a multiple with --bin"
        )
    return sizes[max(divisors)], size // max(divisors)


def cell_centers(outlines: Path, matrix: Path, spot: NDArray[np.str_]) -> NDArray[np.float64]:
    """Centroids of the cells of a matrix, float64 [n, 2]; SectionError if one has no outline."""
    cells = read_cells(outlines)
    row_of = {_cell_number(str(name)): row for row, name in enumerate(cells.id)}
    rows = np.array([row_of.get(_cell_number(str(name)), -1) for name in spot], np.int64)
    if (rows < 0).any():
        missing = str(spot[np.argmax(rows < 0)])
        raise SectionError(
            f"{outlines}: {np.count_nonzero(rows < 0)} of {len(spot)} cells of {matrix.name} have no "
            f"outline, the first is {missing}; the files do not belong together"
        )
    return cells.xy_px[rows]


def _cell_number(name: str) -> str:
    """cellid_000000012-1 and 12 are one cell."""
    match = CELL_NAME.fullmatch(name)
    return match[1] if match else name


def cell_source(name: str, folder: Path, image: Path | None, places: tuple[Path, ...]) -> SectionSource:
    """Describe segmented cells as a section."""
    return SectionSource(
        name, "space-ranger", folder / CELL_MATRIX, folder / CELL_OUTLINES, image, places=places
    )
