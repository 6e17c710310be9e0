"""Which images of a TIFF are the levels of its slide: what the format declares, and what geometry shows.

libvips copies Aperio's description to every level it writes, and tifffile then takes them for thumbnail and
label; it also leaves out SubIFDs below an Aperio image. A directory is a level where it holds a tiled picture
of the same shape, smaller by a whole number, with the same pixels. Thumbnails are strips; labels and macros
have another shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import TiffFile, TiffFrame, TiffPage, TiffPageSeries

from mclst.runtime.errors import SlideError
from mclst.runtime.slide.segmented_slide import is_reduction
from mclst.runtime.slide.tiff_level import RefusedLevel, TiffLevel, read_level
from mclst.runtime.storage.files import ByteFile
from mclst.sections.location import SlideLocation

MAX_LEVELS, MAX_SUBIFDS, MAX_PAGES = 24, 64, 1000
PATCH_PX, CELL_PX = 32, 8
CHEAP_FACTOR = 8
"""Beyond it a patch would cover so much of the finer level that comparing costs more than it tells."""
SAME_TISSUE = 12.0
"""Largest mean difference of cells, gray levels: resampling and JPEG give about 2, other pictures over 30."""
POINTS = ((0.5, 0.5), (0.3, 0.35), (0.7, 0.35), (0.35, 0.7), (0.65, 0.65))


def read_levels(
    path: SlideLocation, file: ByteFile, tif: TiffFile, series: TiffPageSeries, vendor: str
) -> list[TiffLevel]:
    """Read level 0, which must be valid, and all its reductions that are; finest first.

    Raises SlideError or ResourceError if level 0 is damaged or of an unsupported kind.
    """
    count = sum(page is not None for page in series.pages)
    if count != 1 or int(np.prod(series.shape)) != int(np.prod(series.keyframe.shape)):
        raise SlideError(
            f"{path} holds several planes of one size ({series.axes} {tuple(series.shape)}: channels, focal "
            "or time planes), where one RGB image is needed; export it as 8-bit RGB"
        )
    size, blank_is_white = file.size, vendor == "philips"
    parts: list[TiffLevel] = []
    for page, keyframe in _directories(series):
        try:
            part = read_level(page, keyframe, size, blank_is_white=blank_is_white)
        except RefusedLevel as exc:
            if not parts:
                raise exc.kind(f"{path} {exc}") from exc
            continue
        if not parts or is_reduction(parts[0], parts[-1], part):
            parts.append(part)
    if not series.keyframe.is_tiled:
        return parts
    known = {page.offset for page, _ in _directories(series)}
    others = []
    for page, keyframe in _other_directories(tif, series):
        if page.offset in known or not _may_be_level(series.keyframe, keyframe):
            continue
        known.add(page.offset)
        try:
            others.append(read_level(page, keyframe, size, blank_is_white=blank_is_white))
        except RefusedLevel:
            continue
    return _merge(file, parts, others)


def _directories(series: TiffPageSeries) -> Iterator[tuple[TiffPage | TiffFrame, TiffPage]]:
    """A series' levels, as (page, keyframe)."""
    for level in series.levels:
        page = level.pages[0]
        if page is not None:
            yield page, level.keyframe


def _other_directories(
    tif: TiffFile, series: TiffPageSeries
) -> Iterator[tuple[TiffPage | TiffFrame, TiffPage]]:
    for other in tif.series:
        if other is not series:
            yield from _directories(other)
    # tifffile's series of an Aperio file end at the second picture after the levels it takes for such.
    for page in islice(tif.pages, MAX_PAGES):
        if isinstance(page, TiffPage):
            yield page, page
    for index, offset in enumerate((series.keyframe.subifds or ())[:MAX_SUBIFDS]):
        subifd: TiffPage | None = None
        # tifffile raises nearly every type on damaged bytes, and level 0 needs no SubIFD.
        with suppress(Exception):
            tif.filehandle.seek(offset)
            subifd = TiffPage(tif, (series.keyframe.index, index))
        if subifd is not None:
            yield subifd, subifd


def _may_be_level(full: TiffPage, page: TiffPage) -> bool:
    """Whether a directory holds a tiled, smaller picture of the same shape and kind of pixels."""
    if not page.is_tiled or page.dtype != full.dtype or page.samplesperpixel != full.samplesperpixel:
        return False
    if not (0 < page.imagewidth < full.imagewidth and 0 < page.imagelength < full.imagelength):
        return False
    factor = round(full.imagewidth / page.imagewidth)
    return (
        factor > 1
        and abs(full.imagewidth / factor - page.imagewidth) <= 1
        and abs(full.imagelength / factor - page.imagelength) <= 1
    )


def _merge(file: ByteFile, declared: list[TiffLevel], others: list[TiffLevel]) -> list[TiffLevel]:
    """Put the levels that only geometry shows among the declared ones."""
    if not others:
        return declared
    full, certain = declared[0], {id(part) for part in declared}
    levels = [full]
    # Of two of one size the declared one comes first.
    ranked = sorted([*declared[1:], *others], key=lambda part: (-part.width, id(part) not in certain))
    for part in ranked:
        if len(levels) == MAX_LEVELS:
            break
        if is_reduction(full, levels[-1], part) and (
            id(part) in certain or _same_tissue(file, levels[-1], part)
        ):
            levels.append(part)
    return levels


def _same_tissue(file: ByteFile, finer: TiffLevel, part: TiffLevel) -> bool:
    """Compare some patches of two levels; True where comparing is dear or nothing can be read."""
    factor = finer.width / part.width
    if factor > CHEAP_FACTOR:
        return True
    differences = []
    width, height = min(PATCH_PX, part.width), min(PATCH_PX, part.height)
    for across, down in POINTS:
        x, y = int((part.width - width) * across), int((part.height - height) * down)
        left, top = int(x * factor), int(y * factor)
        wide = min(finer.width - left, max(1, round(width * factor)))
        high = min(finer.height - top, max(1, round(height * factor)))
        # A damaged tile is told when it is needed.
        with suppress(Exception):
            pixels = _read(file, part, x, y, width, height)
            expected = _read(file, finer, left, top, wide, high)
            cells = (max(1, width // CELL_PX), max(1, height // CELL_PX))
            differences.append(
                np.abs(_averaged(pixels, cells) - _averaged(expected, cells)).mean(dtype=np.float64)
            )
    return not differences or float(np.mean(differences)) <= SAME_TISSUE


def _read(file: ByteFile, part: TiffLevel, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
    pixels = np.empty((height, width, 3), np.uint8)
    part.read_into(pixels, x, y, partial(part.decode, file))
    return pixels


def _averaged(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), np.float32)
