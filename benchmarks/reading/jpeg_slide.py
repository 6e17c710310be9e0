"""A made-up slide as scanners write them: a TIFF of JPEG tiles, in several levels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

SLIDE_PX, SEGMENT_PX, QUALITY = 16_384, 240, 80
TILE_PX = 224
_CELL_PX = 12


def write_slide(path: Path, *, size_px: int = SLIDE_PX) -> tuple[Path, NDArray[np.float64]]:
    """Write the slide, and return its path and centers of tiles side by side, float64 [n, 2], level-0 px.

    JPEG is written by Pillow, so that only reading needs mclst's decoders.
    """
    segments = list(_segments(np.random.default_rng(0), min(16, (-(-size_px // SEGMENT_PX)) ** 2)))
    across = -(-size_px // SEGMENT_PX)

    def encoded() -> Iterator[bytes]:
        for number in range(across * across):
            yield segments[number % len(segments)]

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(
            encoded(),
            shape=(size_px, size_px, 3),
            dtype=np.uint8,
            tile=(SEGMENT_PX, SEGMENT_PX),
            photometric="ycbcr",
            subsampling=(2, 2),
            compression="jpeg",
            resolution=(40_000, 40_000),
            resolutionunit="CENTIMETER",
        )
    centers = np.arange(TILE_PX // 2, size_px - TILE_PX // 2, TILE_PX, dtype=np.float64)
    x, y = (axis.ravel() for axis in np.meshgrid(centers, centers))
    return path, np.column_stack([x, y])


def _segments(rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """JPEG streams of cells on pink, which compress about as tissue does."""
    side = SEGMENT_PX // _CELL_PX
    for _ in range(count):
        cells = rng.integers(90, 250, (side, side, 3), dtype=np.uint8)
        pixels = np.kron(cells, np.ones((_CELL_PX, _CELL_PX, 1), np.uint8)).astype(np.int16)
        noisy = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noisy).save(stream, "JPEG", quality=QUALITY, subsampling=2)
        yield stream.getvalue()
