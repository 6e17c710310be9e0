"""Reduce pictures by area means: the windows of Pillow's box filter, without its copies of the pixels.

`pip install` builds the fast way from area_mean.cpp if there is a C++ compiler; numpy gives the same values.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.decoding.library import load_compiled

_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
BLOCK_BYTES = 1 << 20
"""Sums of rows that numpy holds at once, so that they stay in the processor's cache."""


@cache
def compiled() -> Any:
    """The compiled function; None if it was not built or does not load."""
    library = load_compiled("_area_mean", {"mclst_area_mean": (_INT, [_POINTER, _INT64] * 3 + [_POINTER])})
    return None if library is None else library.mclst_area_mean


def window_edges(size: int, reduced: int) -> NDArray[np.int64]:
    """Split `size` pixels into `reduced` <= size windows, int64 [reduced + 1]: bounds rounded half up."""
    return (2 * np.arange(reduced + 1, dtype=np.int64) * size + reduced) // (2 * reduced)


def area_mean(
    pixels: NDArray[np.uint8], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Reduce a picture to the means over windows.

    Parameters
    ----------
    pixels : uint8 [h, w, 3]
    rows : int64 [m + 1]
        Bounds of the windows, from 0 to h; no window is empty.
    columns : int64 [n + 1]

    Returns
    -------
    uint8 [m, n, 3]
        Means, rounded half up.

    Raises
    ------
    MemoryError
    """
    pixels, rows, columns = map(np.ascontiguousarray, (pixels, rows, columns))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (0, len(pixels), 0, pixels.shape[1])
    function = compiled()
    if function is None:
        return area_mean_by_numpy(pixels, rows, columns)
    out = np.empty((len(rows) - 1, len(columns) - 1, 3), np.uint8)
    if function(
        pixels.ctypes.data, pixels.shape[1],
        rows.ctypes.data, len(out), columns.ctypes.data, out.shape[1], out.ctypes.data,
    ):  # fmt: skip
        raise MemoryError
    return out


def area_mean_by_numpy(
    pixels: NDArray[np.uint8], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """See `area_mean`."""
    out = np.empty((len(rows) - 1, len(columns) - 1, 3), np.uint8)
    flat = pixels.reshape(len(pixels), -1)
    at_once = max(1, BLOCK_BYTES // (4 * flat.shape[1]))
    sums = np.empty((at_once, *pixels.shape[1:]), np.uint32)
    across = np.diff(columns)[:, None].astype(np.uint64)
    for first in range(0, len(out), at_once):
        bounds = rows[first : first + at_once + 1]
        count = len(bounds) - 1
        for row in range(count):
            flat[bounds[row] : bounds[row + 1]].sum(axis=0, dtype=np.uint32, out=sums[row].reshape(-1))
        totals = np.add.reduceat(sums[:count], columns[:-1], axis=1, dtype=np.uint64)
        area = np.diff(bounds).astype(np.uint64)[:, None, None] * across
        out[first : first + count] = (totals + area // np.uint64(2)) // area
    return out
