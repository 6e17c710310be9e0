"""A made-up slide as scanners write them: a TIFF of JPEG tiles, in several levels."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SLIDE_PX, SEGMENT_PX, QUALITY = 16_384, 240, 80
TILE_PX = 224
_CELL_PX = 12


def write_slide(path: Path, *, size_px: int = SLIDE_PX) -> tuple[Path, NDArray[np.float64]]:
    """Write the slide, and return its path and centers of tiles side by side, float64 [n, 2], level-0 px.

    JPEG is written by Pillow and the file here, so that neither needs an encoder of TIFFs.
    """
    across = -(-size_px // SEGMENT_PX)
    segments = list(_segments(np.random.default_rng(0), min(16, across**2)))
    path.write_bytes(_big_tiff(segments, size_px, across**2))
    centers = np.arange(TILE_PX // 2, size_px - TILE_PX // 2, TILE_PX, dtype=np.float64)
    x, y = (axis.ravel() for axis in np.meshgrid(centers, centers))
    return path, np.column_stack([x, y])


def _big_tiff(streams: list[bytes], size_px: int, tiles: int) -> bytes:
    """A square BigTIFF of JPEG tiles, which take `streams` in turn."""
    short, long, rational, long8 = (3, "<H"), (4, "<I"), (5, "<Q"), (16, "<Q")
    counts = [len(streams[number % len(streams)]) for number in range(tiles)]
    offsets = (16 + np.cumsum([0, *counts[:-1]])).tolist()
    per_cm = 40_000 | 1 << 32
    tags: list[tuple[int, tuple[int, str], list[int]]] = [
        (256, long, [size_px]),  # width, height
        (257, long, [size_px]),
        (258, short, [8, 8, 8]),  # bits per sample
        (259, short, [7]),  # JPEG
        (262, short, [6]),  # YCbCr
        (277, short, [3]),  # samples
        (282, rational, [per_cm]),  # resolution along x and y
        (283, rational, [per_cm]),
        (284, short, [1]),  # samples side by side
        (296, short, [3]),  # resolution per centimeter
        (322, long, [SEGMENT_PX]),  # tile width, height
        (323, long, [SEGMENT_PX]),
        (324, long8, offsets),
        (325, long8, counts),
        (530, short, [2, 2]),  # chroma subsampling
    ]
    start = offsets[-1] + counts[-1]
    after = start + 8 + 20 * len(tags) + 8
    entries, values = b"", b""
    for tag, (kind, code), numbers in tags:
        content = b"".join(struct.pack(code, number) for number in numbers)
        if len(content) > 8:
            content, values = struct.pack("<Q", after + len(values)), values + content
        entries += struct.pack("<HHQ", tag, kind, len(numbers)) + content.ljust(8, b"\0")
    header = b"II" + struct.pack("<HHHQ", 43, 8, 0, start)
    pixels = b"".join(streams[number % len(streams)] for number in range(tiles))
    return header + pixels + struct.pack("<Q", len(tags)) + entries + bytes(8) + values


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
