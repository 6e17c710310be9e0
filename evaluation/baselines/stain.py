"""Amount of hematoxylin and eosin in a tile, and how many nuclei it has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.bounds import check_centers
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.location import SlideLocation

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density per channel of hematoxylin, eosin and DAB (Ruifrok & Johnston 2001)."""
UNMIX = np.linalg.inv(STAINS)
NUCLEUS_UM = 3.0
"""Standard deviation of the Laplacian of Gaussian: the radius of a nucleus, 4.2 µm, over √2."""
LEAST_RESPONSE = 0.1
"""Least response, in optical density of hematoxylin, of what counts as a nucleus."""
FIELD_UM = 150.0
TILE_PX = 150
UNKNOWN_MPP = 0.5
"""µm per px of an image that does not say."""
DESCRIPTOR = 12
"""Side of the reduced gray tile that near-duplicates are recognized by."""
NAMES = ("hematoxylin", "eosin", "nuclei per mm²")
BATCH_SIZE = 16


@dataclass(frozen=True)
class Stain:
    """Tiles of a section, NaN without a tile.

    values: float64 [n, 3], by NAMES. descriptor: float32 [n, 144], see `DESCRIPTOR`.
    """

    values: NDArray[np.float64]
    descriptor: NDArray[np.float32]


def unmix(tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Optical density (natural logarithm) of hematoxylin, eosin and a third stain per pixel.

    tiles: uint8 [..., 3]. Returns float64 [..., 3].
    """
    density = -np.log(np.maximum(tiles, 1) / 255.0)
    return np.asarray(density @ UNMIX)


def count_nuclei(hematoxylin: NDArray[np.float64], mpp: float) -> int:
    """Count blobs of a nucleus' size: local maxima of the scale-normalized Laplacian of Gaussian.

    hematoxylin: optical density, float64 [h, w]. mpp: µm per px.
    """
    sigma = NUCLEUS_UM / mpp
    response = -(sigma**2) * ndimage.gaussian_laplace(hematoxylin, sigma, mode="nearest")
    peaks = ndimage.maximum_filter(response, size=max(3, round(2 * sigma)), mode="nearest")
    return int(np.count_nonzero((response == peaks) & (response > LEAST_RESPONSE)))


def describe_tile(tile: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Values by NAMES, float64 [3], and the descriptor, float32 [144], of a tile uint8 [s, s, 3]."""
    stains = unmix(tile)
    area_mm2 = tile.shape[0] * tile.shape[1] * (mpp / 1000) ** 2
    values = np.array(
        [stains[..., 0].mean(), stains[..., 1].mean(), count_nuclei(stains[..., 0], mpp) / area_mm2]
    )
    gray = tile.mean(axis=2)
    edges = np.linspace(0, len(gray), DESCRIPTOR + 1).astype(np.intp)[:-1]
    blocks = np.add.reduceat(np.add.reduceat(gray, edges, axis=0), edges, axis=1)
    blocks = blocks / np.add.reduceat(np.add.reduceat(np.ones_like(gray), edges, axis=0), edges, axis=1)
    return values, blocks.ravel().astype(np.float32)


def read_stain(
    image: SlideLocation, xy_px: NDArray[np.float64], mpp: float | None = None, *, workers: int = 2
) -> Stain:
    """Read the tiles of 150 µm around the spots and measure them.

    Parameters
    ----------
    image : Path or RemoteLocation
    xy_px : float64 [n, 2]
        Level-0 px; NaN where unknown.
    mpp : float, optional
        µm per level-0 px; default: the image's, else `UNKNOWN_MPP`.
    workers : int
        Reading threads.

    Raises
    ------
    SlideError
        If the image cannot be opened.
    SpotsError
        If a position is outside the image.
    """
    n = len(xy_px)
    values = np.full((n, len(NAMES)), np.nan)
    descriptor = np.full((n, DESCRIPTOR**2), np.nan, np.float32)
    rows = np.flatnonzero(np.isfinite(xy_px).all(axis=1))
    with open_slide(image, lazy=True) as slide:
        check_centers(xy_px, slide, lambda row: f"{image}: spot {row + 1}")
        scale = mpp or slide.mpp or UNKNOWN_MPP
        shape = TileShape(TILE_PX, FIELD_UM / TILE_PX, (255, 255, 255))
        tiles = Tiles(slide, xy_px[rows], shape, batch_size=BATCH_SIZE, workers=workers, slide_mpp=scale)
        for batch in tiles:
            for row, tile in zip(rows[batch.rows], batch.tiles, strict=True):
                values[row], descriptor[row] = describe_tile(tile, FIELD_UM / TILE_PX)
    return Stain(values, descriptor)
