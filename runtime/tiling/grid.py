"""A dense grid of places over tissue, as a table of spots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.runtime.errors import SlideError, SpotsError
from mclst.runtime.slide.base import Slide
from mclst.runtime.tiling.tissue import TissueMask
from mclst.sections.section import Spots

LEAST_TISSUE = 0.5
"""Part of a place's square that must be tissue."""
MOST_PLACES = 50_000_000


@dataclass(frozen=True)
class Grid:
    """The places of a grid that lie on tissue.

    spots: row by row, named COLUMNxROW. stride_um, stride_px: between neighbours; the square of that side around a
    place is what it stands for. columns, rows: of the whole grid. skipped: places left out as background.
    """

    spots: Spots
    stride_um: float
    stride_px: float
    columns: int
    rows: int
    skipped: int


def make_grid(slide: Slide, stride_um: float, mpp: float, tissue: TissueMask) -> Grid:
    """Lay a grid over a slide: centres at ((column + ½)·stride, (row + ½)·stride) from its upper left corner.

    A place counts where at least half of its square is tissue. stride_um: µm. mpp: µm per level-0 px.
    Raises SpotsError where the grid has no place or more than 50 million, SlideError where none is on tissue.
    """
    stride_px = stride_um / mpp
    columns = max(0, int(np.ceil(slide.width_px / stride_px - 0.5)))
    rows = max(0, int(np.ceil(slide.height_px / stride_px - 0.5)))
    said = f"a grid of {stride_um:g} µm over {slide.path.name} ({slide.width_px} x {slide.height_px} px)"
    if columns * rows == 0:
        raise SpotsError(f"{said} has no place; give a smaller --grid")
    if columns * rows > MOST_PLACES:
        raise SpotsError(
            f"{said} has {columns * rows:,} places, more than {MOST_PLACES:,}; give a larger --grid"
        )
    column, row = _on_tissue(tissue.mask, slide, stride_px, columns, rows)
    if not len(column):
        raise SlideError(f"{slide.path}: no tissue is found for a grid ({tissue.how}); give --tissue-mask")
    skipped = columns * rows - len(column)
    spots = Spots(
        path=slide.path,
        variant="grid",
        id=np.array([f"{x}x{y}" for x, y in zip(column.tolist(), row.tolist(), strict=True)], dtype=np.str_),
        xy_px=np.stack([column + 0.5, row + 0.5], axis=1) * stride_px,
        array_xy=np.stack([column, row], axis=1),
        row=np.arange(1, len(column) + 1, dtype=np.int64),
        table=pd.DataFrame(index=pd.RangeIndex(len(column))),
        spot_diameter_px=stride_px,
        coordinates=f"every {stride_um:g} µm ({stride_px:.4g} px) on tissue; {skipped:,} skipped as background, "
        f"{tissue.how}",
    )
    return Grid(spots, stride_um, stride_px, columns, rows, skipped)


def _on_tissue(
    mask: NDArray[np.bool_], slide: Slide, stride_px: float, columns: int, rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(column, row) of the places on tissue, row by row; a row of the grid at a time."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(mask, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
    left, right = _cells(columns, stride_px, slide.width_px, mask.shape[1])
    top, bottom = _cells(rows, stride_px, slide.height_px, mask.shape[0])
    found = []
    for row in range(rows):
        upper, lower = sums[top[row]], sums[bottom[row]]
        tissue = lower[right] - lower[left] - upper[right] + upper[left]
        area = (right - left) * (bottom[row] - top[row])
        found.append(np.flatnonzero(tissue >= LEAST_TISSUE * area))
    row_of = np.repeat(np.arange(rows), [len(columns_of) for columns_of in found])
    return np.concatenate(found).astype(np.int64), row_of.astype(np.int64)


def _cells(count: int, stride_px: float, size_px: int, mask_px: int) -> tuple[NDArray[np.int64], ...]:
    """Mask pixels [start, stop) under each square along one axis, at least the one under its centre."""
    scale = mask_px / size_px
    at = np.arange(count)
    start = np.clip(np.round(at * stride_px * scale), 0, mask_px).astype(np.int64)
    stop = np.clip(np.round((at + 1) * stride_px * scale), 0, mask_px).astype(np.int64)
    centre = np.minimum(((at + 0.5) * stride_px * scale).astype(np.int64), mask_px - 1)
    narrow = stop <= start
    return np.where(narrow, centre, start), np.where(narrow, centre + 1, stop)
