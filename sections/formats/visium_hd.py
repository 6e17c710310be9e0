"""Visium HD: bins of one size, or segmented cells, of Space Ranger's top folder.

Layout (Space Ranger 3 and 4): `binned_outputs/square_{002,008,016}um/`, each like a Space Ranger folder, and
`segmented_outputs/` with `filtered_feature_cell_matrix.h5` and `cell_segmentations.geojson`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.formats.source import SectionSource, list_folder
from mclst.sections.section import Section
from mclst.sections.tables.geojson import read_cells

BINNED, SEGMENTED = "binned_outputs", "segmented_outputs"
CELLS = "cells"
DEFAULT_BIN = "8"
"""10x Genomics' recommendation; 2 µm bins hold few counts each."""
SQUARE = re.compile(r"square_(\d{3})um", re.ASCII)
CELL_MATRIX, CELL_OUTLINES = "filtered_feature_cell_matrix.h5", "cell_segmentations.geojson"
CELL_NAME = re.compile(r"cellid_0*(\d+)(-\d+)?", re.ASCII)
BIN_NAME = re.compile(r"s_\d{3}um_\d+_\d+(-\d+)?", re.ASCII)


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
    size = int(bins)
    divisors = [have for have in sizes if have and size % have == 0]
    if not divisors:
        listed = ", ".join(f"{have}" for have in sorted(sizes)) or "none"
        raise SectionError(
            f"{top}: no bins make {size} µm; there are {listed} µm: give a multiple with --bin"
        )
    return sizes[max(divisors)], size // max(divisors)


def pool(section: Section, factor: int) -> Section:
    """Sum squares of `factor` x `factor` bins; centers lie on the array's own grid.

    Raises SectionError if the section is no array of bins.
    """
    if factor == 1:
        return section
    array_xy, xy_px = section.array_xy, section.xy_px
    if array_xy is None or xy_px is None or not BIN_NAME.fullmatch(str(section.spot[0])):
        raise SectionError(f"{section.path}: section {section.name} has no bins to pool; leave --bin out")
    known = np.isfinite(xy_px).all(axis=1)
    design = np.column_stack([array_xy[known], np.ones(int(known.sum()))])
    transform, _, rank, _ = np.linalg.lstsq(design, xy_px[known], rcond=None)
    if rank < 3:
        raise SectionError(f"{section.path}: the bins of section {section.name} lie on one line; not pooled")
    squares, square_of = np.unique(array_xy // factor, axis=0, return_inverse=True)
    members = sp.csr_matrix(
        (np.ones(len(section), np.float32), (square_of.ravel(), np.arange(len(section)))),
        shape=(len(squares), len(section)),
    )
    middle = squares * factor + (factor - 1) / 2
    size = int(str(section.spot[0])[2:5]) * factor
    return replace(
        section,
        spot=np.array([f"s_{size:03d}um_{row:05d}_{column:05d}-1" for column, row in squares.tolist()]),
        counts=sp.csr_matrix(members @ section.counts),
        array_xy=squares.astype(np.int64),
        xy_px=np.column_stack([middle, np.ones(len(squares))]) @ transform,
    )


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
