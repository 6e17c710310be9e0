"""Keep those blocks of a JPEG that will be read, and its overview, from one pass over bands of its rows.

A picture of 92 megapixels takes 0.2 s to decode. To touch 276 MB of fresh memory can take thrice as long.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.decoding.area_mean import window_edges
from mclst.runtime.decoding.library import libjpeg, load_compiled

U8 = NDArray[np.uint8]
BLOCK_PX = 128
"""Side of a block: small, so that little is kept besides tiles, and large enough for few copies per tile."""
BAND_BYTES = 1 << 20
"""Rows decoded at a time, so that they stay in the processor's cache until they are copied and averaged."""
NO_MEMORY = 2
_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_ARGUMENTS = [
    *(_POINTER, ctypes.c_char_p, _INT64, _INT64, _INT64),
    *(_INT64, _POINTER, _POINTER, _INT64, _POINTER, _INT64, _POINTER, _INT64),
]


@cache
def compiled() -> Any:
    """The compiled function; None if it was not built or does not load."""
    library = load_compiled("_jpeg_blocks", {"mclst_jpeg_blocks": (_INT, _ARGUMENTS)})
    return None if library is None else library.mclst_jpeg_blocks


def can_keep_blocks() -> bool:
    """Whether blocks of a JPEG are kept here: the part is compiled, and there is a libjpeg-turbo."""
    return compiled() is not None and libjpeg() is not None


class Unusual(ValueError):
    """A stream that is damaged, or of a kind that is decoded whole; `decode_jpeg` says which."""


def marked_blocks(size: tuple[int, int], corners: NDArray[np.int64], side: int) -> NDArray[np.bool_]:
    """Mark the blocks under squares.

    Parameters
    ----------
    size : (int, int)
        Width and height of the picture, px.
    corners : int64 [n, 2]
        Upper left corners (x, y), px; squares may reach or lie outside the picture.
    side : int
        Of the squares, px.

    Returns
    -------
    bool [rows, columns]
    """
    blocks = -(-np.array(size) // BLOCK_PX)
    first, end = np.clip(corners, 0, size), np.clip(corners + side, 0, size)
    inside = (first < end).all(axis=1)
    (left, top), (right, bottom) = (first[inside] // BLOCK_PX).T, ((end[inside] - 1) // BLOCK_PX + 1).T
    # Summed along both axes, these steps count the squares over each block.
    steps = np.zeros((blocks[1] + 1, blocks[0] + 1), np.int64)
    for row, column, step in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(steps, (row, column), step)
    marked: NDArray[np.bool_] = steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
    return marked


class Blocks:
    """Blocks of a picture; their pixels are not set.

    Parameters
    ----------
    size : (int, int)
        Width and height of the picture, px.
    marked : bool [rows, columns]
        Those to keep; see `marked_blocks`.

    Attributes
    ----------
    addresses : uint64 [rows, columns]
        Of the pixels of each block, uint8 [h, w, 3] in C order; 0 where it is not kept.
    """

    def __init__(self, size: tuple[int, int], marked: NDArray[np.bool_]) -> None:
        width, height = size
        self._blocks: dict[tuple[int, int], U8] = {}
        self.addresses = np.zeros(marked.shape, np.uint64)
        places = np.argwhere(marked)
        # In one piece, so that the system gives large pages.
        memory = np.empty((len(places), 3 * BLOCK_PX * BLOCK_PX), np.uint8)
        self.addresses[marked] = memory.ctypes.data + np.arange(len(places)) * memory.strides[0]
        for (row, column), of_block in zip(places.tolist(), memory, strict=True):
            high, wide = min(BLOCK_PX, height - row * BLOCK_PX), min(BLOCK_PX, width - column * BLOCK_PX)
            self._blocks[row, column] = of_block[: high * wide * 3].reshape(high, wide, 3)

    def read(self, pixels: U8, x: int, y: int) -> bool:
        """Fill uint8 [h, w, 3] with the rectangle at (x, y); return whether all of it is kept."""
        height, width, _ = pixels.shape
        for row in range(y // BLOCK_PX, (y + height - 1) // BLOCK_PX + 1):
            top = row * BLOCK_PX - y
            for column in range(x // BLOCK_PX, (x + width - 1) // BLOCK_PX + 1):
                block = self._blocks.get((row, column))
                if block is None:
                    return False
                left = column * BLOCK_PX - x
                part = block[max(0, -top) : height - top, max(0, -left) : width - left]
                at_y, at_x = max(0, top), max(0, left)
                pixels[at_y : at_y + part.shape[0], at_x : at_x + part.shape[1]] = part
        return True


def keep_blocks(
    data: bytes, size: tuple[int, int], marked: NDArray[np.bool_], reduced: tuple[int, int] | None
) -> tuple[Blocks, U8 | None]:
    """Decode a JPEG of three colors to its end, and keep what is marked.

    Parameters
    ----------
    data : bytes
        The file.
    size : (int, int)
        Width and height as its header says, px.
    marked : bool [rows, columns]
        See `marked_blocks`.
    reduced : (int, int), optional
        Width and height of the overview, px.

    Returns
    -------
    Blocks
    uint8 [h, w, 3] or None
        The overview, by `area_mean` over `window_edges`; None if none is asked for.

    Raises
    ------
    Unusual
        If libjpeg has any complaint.
    MemoryError
    """
    (width, height), blocks = size, Blocks(size, marked)
    at_once = max(1, BAND_BYTES // (3 * width))
    overview, columns, band = None, window_edges(width, 1), 1
    rows = window_edges(height, -(-height // at_once))
    if reduced is not None:
        # Bands end where windows of the overview end.
        overview = np.empty((reduced[1], reduced[0], 3), np.uint8)
        rows, columns = window_edges(height, reduced[1]), window_edges(width, reduced[0])
        band = max(1, at_once * reduced[1] // height)
    failed = compiled()(
        libjpeg(), data, len(data), width, height,
        BLOCK_PX, blocks.addresses.ctypes.data, rows.ctypes.data, len(rows) - 1, columns.ctypes.data,
        len(columns) - 1, None if overview is None else overview.ctypes.data, band,
    )  # fmt: skip
    if failed == NO_MEMORY:
        raise MemoryError
    if failed:
        raise Unusual
    return blocks, overview
