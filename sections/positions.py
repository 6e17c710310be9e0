"""Spot positions as rows of a model's two position tables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def table_positions(
    kind: str, array_xy: NDArray[np.int64] | None, xy_px: NDArray[np.float64] | None, spots: int
) -> NDArray[np.int64] | None:
    """Rows int64 [n, 2] of the two tables, or None if the section lacks these coordinates.

    kind: "array": array coordinates (x, y), as for HER2+ and cSCC. "pixel": level-0 pixels (row, column),
    truncated, as in the published Visium script. "none": all 0.
    """
    if kind == "none":
        return np.zeros((spots, 2), np.int64)
    if kind == "array":
        return array_xy
    if xy_px is None or not np.isfinite(xy_px).all():
        return None
    positions: NDArray[np.int64] = xy_px[:, ::-1].astype(np.int64)
    return positions
