"""Tiles to prove parity on: from the sections' own images where there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mclst.export.inputs.references import SectionImage
from mclst.export.parity.compare import Tiles
from mclst.runtime.bundle.manifest import Tile
from mclst.runtime.errors import InputError, SlideError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.grid import make_grid
from mclst.runtime.tiling.tiles import Tiles as TileStream
from mclst.runtime.tiling.tiles import TileShape
from mclst.runtime.tiling.tissue import find_tissue

ASSUMED_MPP = 0.5
"""Of a slide that does not say: tissue is found by colour at about 8 µm/px, and half or double of it does as well."""
MAX_IMAGES = 3
"""Sections read for parity: opening a large JPEG costs seconds, and three show three stainings."""


def real_tiles(
    sections: Sequence[SectionImage],
    tile: Tile,
    count: int,
    say: Callable[[str], None],
    without: Tiles | None = None,
) -> Tiles | None:
    """`count` tiles spread evenly over up to three sections' spots; None where no section has image and pixels.

    Tiles are taken at level 0 whatever their mpp: parity does not depend on scale. A section whose image cannot
    be read is passed over, and `say` is told. without: tiles whose spots are not taken again.
    """
    chosen = (
        [sections[i] for i in np.unique(np.linspace(0, len(sections) - 1, MAX_IMAGES).round().astype(int))]
        if sections
        else []
    )
    shape = TileShape(tile.size_px, None, tile.pad)
    taken = np.array([], np.int64) if without is None or without.rows is None else without.rows
    found: list[NDArray[np.uint8]] = []
    rows: list[NDArray[np.int64]] = []
    read: list[str] = []
    for i, section in enumerate(chosen):
        share = count * (i + 1) // len(chosen) - count * i // len(chosen)
        placed = np.flatnonzero(np.isfinite(section.xy_px).all(axis=1))
        placed = placed[~np.isin(placed + section.first_row, taken)]
        if not len(placed) or not share:
            continue
        some = placed[np.unique(np.linspace(0, len(placed) - 1, share).round().astype(int))]
        try:
            with open_slide(section.image) as slide:
                stream = TileStream(slide, section.xy_px[some], shape, batch_size=share, workers=1)
                for batch in stream:
                    found.append(batch.tiles.copy())
                    rows.append(section.first_row + some[batch.rows])
            read.append(section.name)
        except SlideError as error:
            say(f"Warning: parity is not proved on section {section.name}: {error}")
    if not any(len(part) for part in rows):
        return None
    return Tiles(np.concatenate(found), "section " + ", ".join(read), np.concatenate(rows))


def slide_tiles(paths: Sequence[Path], tile: Tile, count: int) -> Tiles:
    """`count` tiles spread evenly over the tissue of slides, at the encoder's scale where a slide says its own.

    Raises SlideError where one cannot be read or shows no tissue.
    """
    found: list[NDArray[np.uint8]] = []
    for i, path in enumerate(paths):
        share = count * (i + 1) // len(paths) - count * i // len(paths)
        with open_slide(path) as slide:
            mpp = slide.mpp or ASSUMED_MPP
            shape = TileShape(tile.size_px, None if slide.mpp is None else tile.mpp, tile.pad)
            side_um = tile.size_px * (shape.mpp or mpp)
            try:
                places = make_grid(slide, side_um / 2, mpp, find_tissue(slide, mpp)).spots.xy_px
            except InputError as error:
                raise SlideError(
                    f"{path} has no tissue to calibrate on; give another --calibration"
                ) from error
            some = places[np.unique(np.linspace(0, len(places) - 1, share).round().astype(int))]
            for batch in TileStream(slide, some, shape, batch_size=max(1, share), workers=1):
                if batch.failed:
                    raise SlideError(f"{path}: {batch.failed[0][1]}; give another --calibration")
                found.append(batch.tiles.copy())
    return Tiles(np.concatenate(found), ", ".join(path.name for path in paths))


def made_up_tiles(tile: Tile, count: int) -> Tiles:
    """Smooth noise in the colours of haematoxylin and eosin, for references without images; said so in parity.json."""
    rng = np.random.default_rng(0)
    size = tile.size_px
    dark, pink = np.array([92.0, 62.0, 140.0]), np.array([236.0, 190.0, 214.0])
    pixels = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        noise = sum(gaussian_filter(rng.normal(size=(size, size)), s) * s for s in (1.5, 6.0, 20.0))
        share = 1 / (1 + np.exp(-2 * np.asarray(noise)))[..., None]
        pixels[i] = np.clip(dark * share + pink * (1 - share) + rng.normal(0, 4, (size, size, 3)), 0, 255)
    return Tiles(pixels, "made-up tissue (no image of a reference section to read)")
