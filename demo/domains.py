"""Where a made-up section has which tissue: smooth random fields on a coarse grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

DOMAINS = ("tumour", "stroma", "adipose", "immune")
CELL_PX = 8
"""Level-0 px per cell of the coarse grid."""

SHARPNESS = 9.0
"""How abruptly one domain gives way to the next; higher is more abrupt."""


@dataclass(frozen=True)
class Layout:
    """What stands where; fields lie on a grid of CELL_PX level-0 px, indexed [row, column].

    size_px: side of the square slide, level-0 px.
    mpp: µm per level-0 px.
    weight: float32 [4, h, w], share of each of DOMAINS, sums to 1.
    tissue: float32 [h, w], 1 inside the section, 0 on glass.
    grade: float32 [h, w] in 0 … 1: low-grade to high-grade tumour (nuclear size, darkness and crowding).
    fibre: float32 [h, w], direction of the stromal fibres, radians.
    """

    size_px: int
    mpp: float
    weight: NDArray[np.float32]
    tissue: NDArray[np.float32]
    grade: NDArray[np.float32]
    fibre: NDArray[np.float32]

    def at(self, field: NDArray[np.float32], xy_px: NDArray[np.float64]) -> NDArray[np.float32]:
        """Values of `field` [..., h, w] at level-0 places [n, 2] (x, y) → float32 [..., n]."""
        last = field.shape[-1] - 1
        column, row = np.clip(xy_px / CELL_PX, 0, last).astype(np.int64).T
        values: NDArray[np.float32] = field[..., row, column]
        return values


def smooth_noise(rng: np.random.Generator, side: int, sigma: float) -> NDArray[np.float32]:
    """Gaussian-filtered white noise [side, side] of mean 0 and standard deviation 1; sigma in cells."""
    noise = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), sigma, mode="reflect")
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-6), dtype=np.float32)


def lay_out(rng: np.random.Generator, size_px: int, mpp: float) -> Layout:
    """Draw a section: nests of tumour in stroma, fat towards the rim, immune infiltrate between nests.

    The domains' size follows `size_px`, so that a slide of a few hundred pixels holds all of them too; cells and
    fibres, drawn elsewhere, keep their µm.
    """
    side = -(-size_px // CELL_PX)
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    stretch, turn = rng.uniform(0.92, 1.08), rng.uniform(0, np.pi)
    across, along = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    radius = np.hypot(across * stretch, along / stretch)
    outline = 0.06 * smooth_noise(rng, side, side * 0.07) + 0.012 * smooth_noise(rng, side, side * 0.012)
    tissue = np.clip(0.5 + (0.83 + np.clip(outline, -0.2, 0.1) - radius) * side * 0.25, 0, 1)

    nests = smooth_noise(rng, side, side * 0.042) + 0.25 * smooth_noise(rng, side, side * 0.015)
    fat = smooth_noise(rng, side, side * 0.065) + 1.1 * (radius - 0.55)
    infiltrate = smooth_noise(rng, side, side * 0.042) - 0.15 * nests
    ragged = 0.12 * smooth_noise(rng, side, max(side * 0.006, 0.6))
    score = np.stack([nests + ragged, np.full_like(nests, 0.28), fat - 0.5 - ragged, infiltrate - 0.45])
    weight = np.exp(SHARPNESS * (score - score.max(axis=0)))
    weight /= weight.sum(axis=0)
    grade = 1 / (1 + np.exp(-1.8 * smooth_noise(rng, side, side * 0.11)))
    fibre = np.pi * smooth_noise(rng, side, max(90 / mpp / CELL_PX, 1.0)) * 0.45 + rng.uniform(0, np.pi)
    return Layout(
        size_px,
        mpp,
        weight.astype(np.float32),
        tissue.astype(np.float32),
        grade.astype(np.float32),
        np.asarray(fibre, dtype=np.float32),
    )
