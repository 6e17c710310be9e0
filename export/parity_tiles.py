"""Tiles to prove parity on: from the sections' own images where there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mclst.export.parity import Tiles
from mclst.export.references import Pictured
from mclst.runtime.errors import SlideError
from mclst.runtime.manifest import Tile
from mclst.runtime.slide import open_slide
from mclst.runtime.tiles import Tiles as TileStream
from mclst.runtime.tiles import TileShape

MAX_IMAGES = 3
"""Sections read for parity: opening a large JPEG costs seconds, and three show three stainings."""


def real_tiles(
    sections: Sequence[Pictured], tile: Tile, count: int, say: Callable[[str], None]
) -> Tiles | None:
    """`count` tiles spread evenly over up to three sections' spots; None where no section has image and pixels.

    Tiles are taken at level 0 whatever their mpp: parity does not depend on scale. A section whose image cannot
    be read is passed over, and `say` is told.
    """
    chosen = (
        [sections[i] for i in np.unique(np.linspace(0, len(sections) - 1, MAX_IMAGES).round().astype(int))]
        if sections
        else []
    )
    shape = TileShape(tile.size_px, None, tile.pad)
    found: list[NDArray[np.uint8]] = []
    read: list[str] = []
    for i, section in enumerate(chosen):
        share = count * (i + 1) // len(chosen) - count * i // len(chosen)
        placed = section.xy_px[np.isfinite(section.xy_px).all(axis=1)]
        some = placed[np.unique(np.linspace(0, len(placed) - 1, share).round().astype(int))]
        try:
            with open_slide(section.image) as slide:
                stream = TileStream(slide, some, shape, batch_size=max(1, share), workers=1)
                found += [batch.tiles.copy() for batch in stream if len(batch.rows)]
            read.append(section.name)
        except SlideError as error:
            say(f"Warning: parity is not proved on section {section.name}: {error}")
    if not found:
        return None
    return Tiles(np.concatenate(found), "section " + ", ".join(read))


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
