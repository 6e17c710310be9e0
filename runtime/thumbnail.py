"""A slide seen as a whole, made from strips so that memory stays bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from mclst.runtime.slide import Slide

STRIP_PX = 1 << 24
SMALLEST_HOLE_PX = 64


def thumbnail(slide: Slide, max_px: int) -> tuple[NDArray[np.uint8], float]:
    """Area-average a slide to at most `max_px` on its longer side: (uint8 [h, w, 3], scale).

    scale: thumbnail pixels per level-0 pixel. Pixels that cannot be decoded are white.
    """
    if max_px < 1:
        raise ValueError(f"a thumbnail of {max_px} px cannot be made")
    scale = min(1.0, max_px / max(slide.width_px, slide.height_px))
    width, height = max(1, round(slide.width_px * scale)), max(1, round(slide.height_px * scale))
    level = max(
        i
        for i, size in enumerate(slide.levels)
        if i == 0 or (size.width_px >= width and size.height_px >= height)
    )
    size = slide.levels[level]
    step = size.height_px / height
    rows = max(1, int(STRIP_PX / size.width_px / step))
    picture = np.empty((height, width, 3), np.uint8)
    for row in range(0, height, rows):
        end = min(row + rows, height)
        top, bottom = int(row * step), min(size.height_px, int(np.ceil(end * step)))
        strip = _read_or_white(slide, 0, top, size.width_px, bottom - top, level)
        # A box filter never looks beyond the rows an output row covers, so strips join without a seam.
        box = (0.0, row * step - top, float(size.width_px), min(end * step, size.height_px) - top)
        image = Image.fromarray(strip).resize((width, end - row), Image.Resampling.BOX, box=box)
        picture[row:end] = np.asarray(image)
    return picture, max(width, height) / max(slide.width_px, slide.height_px)


def _read_or_white(slide: Slide, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
    from mclst.runtime.slide import TileReadError

    try:
        return slide.read(x, y, width, height, level=level)
    except TileReadError:
        if max(width, height) <= SMALLEST_HOLE_PX:
            return np.full((height, width, 3), 255, np.uint8)
    if width >= height:
        half = width // 2
        left = _read_or_white(slide, x, y, half, height, level)
        return np.hstack([left, _read_or_white(slide, x + half, y, width - half, height, level)])
    half = height // 2
    upper = _read_or_white(slide, x, y, width, half, level)
    return np.vstack([upper, _read_or_white(slide, x, y + half, width, height - half, level)])
