"""Changes of a tile that leave its tissue the same: stain, scanner, focus, JPEG, scale, orientation."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mclst.evaluation.baselines.stain import STAINS, unmix

Pixels = NDArray[np.uint8]
OTHER_DYES = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
"""Optical density (R, G, B) of hematoxylin and eosin of another laboratory, those that Macenko et al. (2009)
normalize to."""
MARGIN = 1.5
"""Side of what is read around a spot, in tiles: a tile turned by 45° needs √2."""


def context_px(size_px: int) -> int:
    """Side of what is read around a tile of `size_px`, of the same parity, so that the tile is its center."""
    side = math.ceil(size_px * MARGIN)
    return side + (side - size_px) % 2


def center(context: Pixels, size: int) -> Pixels:
    """Central square of `size` px of a context [s, s, 3]."""
    start = (len(context) - size) // 2
    return context[start : start + size, start : start + size]


def restained(context: Pixels, size: int, *, hematoxylin: float, eosin: float) -> Pixels:
    """Scale the optical density of hematoxylin and eosin, as another staining protocol does."""
    density = unmix(center(context, size)) * (hematoxylin, eosin, 1.0)
    return _to_pixels(255.0 * np.exp(-density @ STAINS))


def redyed(context: Pixels, size: int) -> Pixels:
    """Replace the two dyes by those of another laboratory, in equal amounts."""
    density = unmix(center(context, size))
    return _to_pixels(255.0 * np.exp(-density @ np.vstack([OTHER_DYES, STAINS[2]])))


def rescanned(context: Pixels, size: int, *, gains: tuple[float, float, float], gamma: float) -> Pixels:
    """Scale the channels and bend the tone curve, as another scanner does."""
    light = (center(context, size) / 255.0) ** gamma * gains
    return _to_pixels(255.0 * light)


def blurred(context: Pixels, size: int, *, sigma: float) -> Pixels:
    """Defocus by a Gaussian of `sigma` px."""
    smooth = ndimage.gaussian_filter(context.astype(np.float64), (sigma, sigma, 0))
    start = (len(context) - size) // 2
    return _to_pixels(smooth[start : start + size, start : start + size])


def compressed(context: Pixels, size: int, *, quality: int) -> Pixels:
    """Store as JPEG of a quality and read back."""
    content = io.BytesIO()
    Image.fromarray(center(context, size)).save(content, format="JPEG", quality=quality)
    return np.asarray(Image.open(content).convert("RGB"))


def rescaled(context: Pixels, size: int, *, factor: float) -> Pixels:
    """Show `factor` times as much tissue per side, as if the slide's µm per pixel were wrong by that."""
    covered = center(context, 2 * round(size * factor / 2) + size % 2)
    return np.asarray(Image.fromarray(covered).resize((size, size), Image.Resampling.BICUBIC))


def rotated(context: Pixels, size: int, *, degrees: float) -> Pixels:
    """Turn around the spot."""
    if degrees % 90 == 0:
        return np.ascontiguousarray(np.rot90(center(context, size), round(degrees / 90)))
    turned = ndimage.rotate(context, degrees, reshape=False, order=1, mode="nearest")
    return center(turned, size)


PERTURBATIONS: dict[str, Callable[[Pixels, int], Pixels]] = {
    "hematoxylin +25 %": partial(restained, hematoxylin=1.25, eosin=1.0),
    "eosin +25 %": partial(restained, hematoxylin=1.0, eosin=1.25),
    "pale stain −30 %": partial(restained, hematoxylin=0.7, eosin=0.7),
    "other dyes": redyed,
    "light −20 %": partial(rescanned, gains=(0.8, 0.8, 0.8), gamma=1.0),
    "scanner color": partial(rescanned, gains=(1.0, 0.95, 0.88), gamma=1.15),
    "blur 1.5 px": partial(blurred, sigma=1.5),
    "JPEG 50": partial(compressed, quality=50),
    "mpp +10 %": partial(rescaled, factor=1.1),
    "mpp −10 %": partial(rescaled, factor=0.9),
    "rotation 90°": partial(rotated, degrees=90),
    "rotation 45°": partial(rotated, degrees=45),
}
"""Context [s, s, 3] and tile size → tile [size, size, 3], by name."""


def _to_pixels(values: NDArray[np.float64]) -> Pixels:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
