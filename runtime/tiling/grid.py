"""A dense grid over tissue, as a table of spots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import SlideError, SpotsError
from mclst.runtime.slide.base import Slide
from mclst.runtime.tiling.tissue import TissueMask
from mclst.sections.columns import Columns
from mclst.sections.location import local_path
from mclst.sections.section import Spots

MIN_TISSUE = 0.5
"""Fraction of a grid square that must be tissue."""
MAX_POSITIONS = 50_000_000


@dataclass(frozen=True)
class Grid:
    """The positions of a grid that are on tissue.

    Attributes
    ----------
    spots : Spots
        Row by row, named COLUMNxROW.
    stride_um, stride_px : float
        Distance between neighbors, µm and level-0 px; each position stands for the square of that side around
        it.
    side_um : (float, float)
        Width and height of that square by the slide's own scale, whose axes may differ a little; by which
        viewers lay images over each other.
    columns, rows : int
        Of the whole grid.
    skipped : int
        Positions left out as background.
    """

    spots: Spots
    stride_um: float
    stride_px: float
    side_um: tuple[float, float]
    columns: int
    rows: int
    skipped: int


def make_grid(slide: Slide, stride_um: float, mpp: float, tissue: TissueMask) -> Grid:
    """Make a grid over a slide's tissue, with centers at ((column + ½)·stride, (row + ½)·stride).

    Parameters
    ----------
    slide : Slide
    stride_um : float
        Distance between neighbors, µm.
    mpp : float
        µm per level-0 px.
    tissue : TissueMask
        A position is kept if at least half of its square is tissue.

    Returns
    -------
    Grid

    Raises
    ------
    SpotsError
        If the grid has no position, or more than 50 million.
    SlideError
        If none is on tissue.
    """
    stride_px = stride_um / mpp
    columns = max(0, int(np.ceil(slide.width_px / stride_px - 0.5)))
    rows = max(0, int(np.ceil(slide.height_px / stride_px - 0.5)))
    grid = f"a grid of {stride_um:g} µm over {slide.path.name} ({slide.width_px} x {slide.height_px} px)"
    if columns * rows == 0:
        raise SpotsError(f"{grid} has no position; give a smaller --grid")
    if columns * rows > MAX_POSITIONS:
        raise SpotsError(
            f"{grid} has {columns * rows:,} positions, more than {MAX_POSITIONS:,}; give a larger --grid"
        )
    column, row = _on_tissue(tissue.mask, slide, stride_px, columns, rows)
    if not len(column):
        raise SlideError(f"{slide.path}: no tissue is found for a grid ({tissue.method}); give --tissue-mask")
    skipped = columns * rows - len(column)
    spots = Spots(
        path=local_path(slide.path) or Path(slide.path.name),
        variant="grid",
        id=np.array([f"{x}x{y}" for x, y in zip(column.tolist(), row.tolist(), strict=True)], dtype=np.str_),
        xy_px=np.stack([column + 0.5, row + 0.5], axis=1) * stride_px,
        array_xy=np.stack([column, row], axis=1),
        row=np.arange(1, len(column) + 1, dtype=np.int64),
        columns=Columns(range(len(column))),
        spot_diameter_px=stride_px,
        coordinates=f"every {stride_um:g} µm ({stride_px:.4g} px) on tissue; {skipped:,} skipped "
        f"as background, {tissue.method}",
    )
    across, down = slide.mpp_xy if slide.mpp_xy is not None and slide.mpp == mpp else (mpp, mpp)
    side_um = (stride_um * (across / mpp), stride_um * (down / mpp))
    return Grid(spots, stride_um, stride_px, side_um, columns, rows, skipped)


def _on_tissue(
    mask: NDArray[np.bool_], slide: Slide, stride_px: float, columns: int, rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(column, row) of the positions on tissue, row by row."""
    # A summed-area table gives the tissue in any square from four of its entries.
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(mask, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
    left, right = _mask_ranges(columns, stride_px, slide.width_px, mask.shape[1])
    top, bottom = _mask_ranges(rows, stride_px, slide.height_px, mask.shape[0])
    columns_on_tissue = []
    for row in range(rows):
        upper, lower = sums[top[row]], sums[bottom[row]]
        tissue = lower[right] - lower[left] - upper[right] + upper[left]
        area = (right - left) * (bottom[row] - top[row])
        columns_on_tissue.append(np.flatnonzero(tissue >= MIN_TISSUE * area))
    row_of = np.repeat(np.arange(rows), [len(some) for some in columns_on_tissue])
    return np.concatenate(columns_on_tissue).astype(np.int64), row_of.astype(np.int64)


def _mask_ranges(count: int, stride_px: float, size_px: int, mask_px: int) -> tuple[NDArray[np.int64], ...]:
    """Mask pixels [start, stop) of each square along one axis, at least the one at its center."""
    scale = mask_px / size_px
    index = np.arange(count)
    start = np.clip(np.round(index * stride_px * scale), 0, mask_px).astype(np.int64)
    stop = np.clip(np.round((index + 1) * stride_px * scale), 0, mask_px).astype(np.int64)
    center = np.minimum(((index + 0.5) * stride_px * scale).astype(np.int64), mask_px - 1)
    narrow = stop <= start
    return np.where(narrow, center, start), np.where(narrow, center + 1, stop)
