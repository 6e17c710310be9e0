"""Tissue domains of a synthetic section: smooth random fields on a coarse grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

DOMAINS = ("tumor", "stroma", "adipose", "immune")
CELL_PX = 8
"""Level-0 px per cell of the coarse grid."""

SHARPNESS = 9.0
"""Sharpness of domain borders."""


@dataclass(frozen=True)
class Layout:
    """Tissue layout of a section; fields have cells of CELL_PX level-0 px, indexed [row, column].

    size_px: side of the square slide, level-0 px.
    mpp: µm per level-0 px.
    weight: float32 [4, h, w], share of each of DOMAINS, sums to 1.
    tissue: float32 [h, w], 1 inside the section, 0 on glass.
    grade: float32 [h, w] in 0 … 1: low-grade to high-grade tumor (nuclear size, darkness and crowding).
    fiber: float32 [h, w], direction of the stromal fibers, radians.
    """

    size_px: int
    mpp: float
    weight: NDArray[np.float32]
    tissue: NDArray[np.float32]
    grade: NDArray[np.float32]
    fiber: NDArray[np.float32]

    def at(self, field: NDArray[np.float32], xy_px: NDArray[np.float64]) -> NDArray[np.float32]:
        """Sample `field` [..., h, w] at level-0 px (x, y) [n, 2] → float32 [..., n]."""
        last = field.shape[-1] - 1
        column, row = np.clip(xy_px / CELL_PX, 0, last).astype(np.int64).T
        values: NDArray[np.float32] = field[..., row, column]
        return values


def smooth_noise(rng: np.random.Generator, side: int, sigma: float) -> NDArray[np.float32]:
    """Gaussian-filtered white noise [side, side] of mean 0 and standard deviation 1; sigma in cells."""
    noise = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), sigma, mode="reflect")
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-6), dtype=np.float32)


def make_layout(rng: np.random.Generator, size_px: int, mpp: float) -> Layout:
    """Create a layout: tumor nests in stroma, fat towards the rim, immune infiltrate between nests.

    Domains scale with `size_px`, so that small slides contain all of them; cells and fibers have fixed sizes
    in µm.
    """
    side = -(-size_px // CELL_PX)
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    resize, rotation = rng.uniform(0.92, 1.08), rng.uniform(0, np.pi)
    across, along = x * np.cos(rotation) + y * np.sin(rotation), y * np.cos(rotation) - x * np.sin(rotation)
    radius = np.hypot(across * resize, along / resize)
    outline = 0.06 * smooth_noise(rng, side, side * 0.07) + 0.012 * smooth_noise(rng, side, side * 0.012)
    tissue = np.clip(0.5 + (0.83 + np.clip(outline, -0.2, 0.1) - radius) * side * 0.25, 0, 1)

    nests = smooth_noise(rng, side, side * 0.042) + 0.25 * smooth_noise(rng, side, side * 0.015)
    fat = smooth_noise(rng, side, side * 0.065) + 1.1 * (radius - 0.55)
    infiltrate = smooth_noise(rng, side, side * 0.042) - 0.15 * nests
    border_noise = 0.12 * smooth_noise(rng, side, max(side * 0.006, 0.6))
    score = np.stack(
        [nests + border_noise, np.full_like(nests, 0.28), fat - 0.5 - border_noise, infiltrate - 0.45]
    )
    weight = np.exp(SHARPNESS * (score - score.max(axis=0)))
    weight /= weight.sum(axis=0)
    grade = 1 / (1 + np.exp(-1.8 * smooth_noise(rng, side, side * 0.11)))
    fiber = np.pi * smooth_noise(rng, side, max(90 / mpp / CELL_PX, 1.0)) * 0.45 + rng.uniform(0, np.pi)
    return Layout(
        size_px,
        mpp,
        weight.astype(np.float32),
        tissue.astype(np.float32),
        grade.astype(np.float32),
        np.asarray(fiber, dtype=np.float32),
    )
