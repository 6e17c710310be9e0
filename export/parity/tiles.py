"""Tiles for parity and calibration: from section images, from slides, or synthetic."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from mclst.export.inputs.references import SectionImage
from mclst.export.parity.compare import TileSet
from mclst.export.parity.tolerances import LEAST_TILES
from mclst.runtime.atomic import write_atomically
from mclst.runtime.bundle.bundle import PARITY_OUTPUT, PARITY_TILES
from mclst.runtime.bundle.manifest import Tile
from mclst.runtime.errors import InputError, SlideError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.bounds import check_centers
from mclst.runtime.tiling.grid import make_grid
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.runtime.tiling.tissue import find_tissue
from mclst.sections.location import SlideLocation

ASSUMED_MPP = 0.5
"""For slides without a scale. Tissue is found by color at about 8 µm/px, where a factor of 2 is harmless."""
MAX_IMAGES = 3
"""Sections read for parity: opening a large JPEG takes seconds, and three show three stainings."""


def real_tiles(
    sections: Sequence[SectionImage],
    tile: Tile,
    count: int,
    say: Callable[[str], None],
    without: TileSet | None = None,
) -> TileSet | None:
    """Read `count` tiles spread evenly over the spots of up to three sections.

    Returns None if no section has an image and pixels. An unreadable image is skipped with a message to
    `say`. Spots of `without` are not used again. Raises SpotsError if a spot is outside its image.
    """
    chosen = (
        [sections[i] for i in np.unique(np.linspace(0, len(sections) - 1, MAX_IMAGES).round().astype(int))]
        if sections
        else []
    )
    # Level-0 pixels whatever the mpp: parity does not depend on scale.
    shape = TileShape(tile.size_px, None, tile.pad)
    excluded = np.array([], np.int64) if without is None or without.rows is None else without.rows
    pixels: list[NDArray[np.uint8]] = []
    rows: list[NDArray[np.int64]] = []
    read: list[str] = []
    for i, section in enumerate(chosen):
        share = count * (i + 1) // len(chosen) - count * i // len(chosen)
        located = np.flatnonzero(np.isfinite(section.xy_px).all(axis=1))
        located = located[~np.isin(located + section.first_row, excluded)]
        if not len(located) or not share:
            continue
        selected = located[np.unique(np.linspace(0, len(located) - 1, share).round().astype(int))]
        try:
            with open_slide(section.image, lazy=True) as slide:
                check_centers(section.xy_px, slide, section.describe)
                stream = Tiles(slide, section.xy_px[selected], shape, batch_size=share, workers=1)
                for batch in stream:
                    pixels.append(batch.tiles.copy())
                    rows.append(section.first_row + selected[batch.rows])
            read.append(section.name)
        except SlideError as error:
            say(f"Warning: parity is not proved on section {section.name}: {error}")
    if not any(len(part) for part in rows):
        return None
    return TileSet(np.concatenate(pixels), "section " + ", ".join(read), np.concatenate(rows))


def stored_tiles(
    metadata: Mapping[str, Any], tile: Tile, count: int, calibration: int
) -> tuple[TileSet, TileSet | None] | None:
    """Take tiles that a checkpoint of mclst carries, for parity and, disjoint, for calibration.

    Returns None if it carries none of this size. Every second tile calibrates, but fewer where parity would
    have less than LEAST_TILES, and none without calibration (0).
    """
    stored, size = metadata.get("tiles"), tile.size_px
    if (
        not isinstance(stored, Tensor)
        or stored.dtype != torch.uint8
        or not len(stored)
        or stored.shape[1:] != (size, size, 3)
    ):
        return None
    source = "the training sections, carried in the checkpoint"
    every = len(stored)
    given = min(every // 2, max(0, every - LEAST_TILES)) if calibration else 0
    rows = np.arange(given) * every // max(1, given) + 1
    tiles = TileSet(np.delete(stored.numpy(), rows, axis=0)[:count], source)
    return tiles, TileSet(stored.numpy()[rows[:calibration]], source) if given else None


def slide_tiles(paths: Sequence[SlideLocation], tile: Tile, count: int) -> TileSet:
    """Read `count` tiles spread evenly over the tissue of slides, at the encoder's mpp if a slide has one.

    Raises SlideError if one cannot be read or has no tissue.
    """
    pixels: list[NDArray[np.uint8]] = []
    for i, path in enumerate(paths):
        share = count * (i + 1) // len(paths) - count * i // len(paths)
        with open_slide(path) as slide:
            mpp = slide.mpp or ASSUMED_MPP
            shape = TileShape(tile.size_px, None if slide.mpp is None else tile.mpp, tile.pad)
            side_um = tile.size_px * (shape.mpp or mpp)
            try:
                centers = make_grid(slide, side_um / 2, mpp, find_tissue(slide, mpp)).spots.xy_px
            except InputError as error:
                raise SlideError(
                    f"{path} has no tissue to calibrate on; give another --calibration"
                ) from error
            selected = centers[np.unique(np.linspace(0, len(centers) - 1, share).round().astype(int))]
            for batch in Tiles(slide, selected, shape, batch_size=max(1, share), workers=1):
                if batch.failed:
                    raise SlideError(f"{path}: {batch.failed[0][1]}; give another --calibration")
                pixels.append(batch.tiles.copy())
    return TileSet(np.concatenate(pixels), ", ".join(path.name for path in paths))


def keep_tiles(folder: Path, tiles: TileSet, output: NDArray[np.float32], count: int) -> None:
    """Write `count` of a parity proof's tiles, spread over all of them, and the checkpoint's output."""
    if not count:
        return
    chosen = np.unique(np.linspace(0, len(tiles.pixels) - 1, count).round().astype(int))
    for name, array in ((PARITY_TILES, tiles.pixels), (PARITY_OUTPUT, output)):
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array[chosen]), allow_pickle=False)
        write_atomically(folder / name, buffer.getvalue())


def synthetic_tiles(tile: Tile, count: int) -> TileSet:
    """Smooth noise in the colors of hematoxylin and eosin, for references without images."""
    rng = np.random.default_rng(0)
    size = tile.size_px
    dark, pink = np.array([92.0, 62.0, 140.0]), np.array([236.0, 190.0, 214.0])
    pixels = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        noise = sum(gaussian_filter(rng.normal(size=(size, size)), s) * s for s in (1.5, 6.0, 20.0))
        share = 1 / (1 + np.exp(-2 * np.asarray(noise)))[..., None]
        pixels[i] = np.clip(dark * share + pink * (1 - share) + rng.normal(0, 4, (size, size, 3)), 0, 255)
    return TileSet(pixels, "made-up tissue (no image of a reference section to read)")
