"""Synthetic slides in every layout and codec, with the pixels an independent reader gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

PAD = (9, 200, 77)


STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Optical densities (R, G, B) of hematoxylin and eosin (Ruifrok and Johnston 2001)."""


def stained(amounts: NDArray[np.float64]) -> NDArray[np.uint8]:
    """RGB uint8 [..., 3] of tissue that holds amounts [..., 2] of hematoxylin and eosin."""
    rgb: NDArray[np.uint8] = np.round(255 * 10 ** -(amounts @ STAINS)).astype(np.uint8)
    return rgb


def tissue(height: int = 300, width: int = 420, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth H&E color with some grain, as lossy codecs like it."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(stained(rng.uniform(0, 0.6, (12, 16, 2))))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grainy: NDArray[np.uint8] = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
    return grainy


def cut(image: NDArray[np.uint8], x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
    """The rectangle by plain numpy: the whole image set in enough padding."""
    far = max(width, height, abs(x), abs(y)) + 1
    canvas = np.empty((image.shape[0] + 2 * far, image.shape[1] + 2 * far, 3), np.uint8)
    canvas[:] = PAD
    canvas[far:-far, far:-far] = image
    x, y = min(x, image.shape[1] + far - width), min(y, image.shape[0] + far - height)
    return canvas[y + far : y + far + height, x + far : x + far + width]


LAYOUTS: dict[str, dict[str, Any]] = {
    "tiled jpeg": {"tile": (64, 96), "compression": "jpeg", "compressionargs": {"level": 90}},
    "tiled jpeg 4:2:0": {
        "tile": (64, 64),
        "compression": "jpeg",
        "compressionargs": {"level": 80},
        "photometric": "ycbcr",
        "subsampling": (2, 2),
    },
    "jpeg strips": {"rowsperstrip": 40, "compression": "jpeg"},
    "tiled deflate": {"tile": (48, 80), "compression": "zlib", "predictor": True},
    "deflate strips": {"rowsperstrip": 37, "compression": "zlib"},
    "one deflate strip": {"rowsperstrip": 300, "compression": "zlib"},
    "lzw strips": {"rowsperstrip": 16, "compression": "lzw", "predictor": True},
    "tiled zstd": {"tile": (64, 64), "compression": "zstd"},
    "packbits strips": {"rowsperstrip": 50, "compression": "packbits"},
    "tiled webp": {"tile": (64, 64), "compression": "webp", "compressionargs": {"lossless": True}},
    "tiled jpeg 2000": {"tile": (64, 64), "compression": "jpeg2000", "compressionargs": {"reversible": True}},
    "tiled plain": {"tile": (64, 64)},
    "one plain strip": {"rowsperstrip": 300},
    "plain strips": {"rowsperstrip": 7},
    "big-endian bigtiff": {"tile": (64, 64), "compression": "zlib"},
    "planar tiles": {"tile": (64, 64), "compression": "zlib", "planarconfig": "separate"},
    "planar strips": {"rowsperstrip": 20, "planarconfig": "separate"},
}
LOSSY = {name for name in LAYOUTS if "jpeg" in name and "2000" not in name}
REDUCED = {"tiled jpeg", "tiled deflate", "tiled webp"}


def write_layout(folder: Path, name: str) -> tuple[Path, list[NDArray[np.uint8]]]:
    """A synthetic slide and the pixels of its levels, as an independent reader gives them."""
    path = folder / f"{name}.tif"
    image = tissue()
    options = {"photometric": "rgb", "metadata": None, **LAYOUTS[name]}
    planar = options.get("planarconfig") == "separate"
    bigtiff = "bigtiff" in name
    levels = [image, image[::2, ::2], image[::4, ::4]] if name in REDUCED else [image]
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=">" if bigtiff else "<") as tif:
        for number, level in enumerate(levels):
            data = np.ascontiguousarray(level.transpose(2, 0, 1) if planar else level)
            tif.write(data, subfiletype=int(number > 0), **options)
    if name in LOSSY:
        levels = [np.asarray(tifffile.imread(path, key=number)) for number in range(len(levels))]
    return path, levels
