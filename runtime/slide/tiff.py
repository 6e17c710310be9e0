"""TIFF-based slides of all vendors: Aperio, Hamamatsu, Philips, OME, generic pyramids, plain strips.

tifffile parses the directories once. After that a read takes only the tiles or strips it needs, by offset, so
that threads share no file position.
"""

from __future__ import annotations

import logging
import struct
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile

from mclst.runtime.errors import MclstError, ResourceError, SlideError
from mclst.runtime.slide.base import Level, Slide, TileReadError
from mclst.runtime.slide.color import profile_name
from mclst.runtime.slide.metadata import Objective, has_entities, tiff_mpp, tiff_objective
from mclst.runtime.slide.segment_cache import SegmentCache, SharedFile
from mclst.runtime.slide.tiff_level import TiffLevel
from mclst.runtime.slide.tiff_pyramid import read_levels

# A command prints one sentence; what matters of tifffile's warnings is checked here.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

VENDORS = {
    "svs": "aperio",
    "ndpi": "hamamatsu",
    "qpi": "perkinelmer",
    **dict.fromkeys(("uniform", "shaped", "generic"), "generic-tiff"),
}
# Their tiles overlap or are shifted by metadata that only OpenSlide applies.
NEED_OPENSLIDE = {"scn": "a Leica SCN slide", "bif": "a Ventana BIF slide"}


class NeedsOpenSlide(Exception):
    """Only OpenSlide reads the slide; the message is its kind."""


class TiffSlide(Slide):
    """A TIFF slide; all threads share a bounded cache of decoded segments."""

    def __init__(
        self,
        path: Path,
        vendor: str,
        parts: list[TiffLevel],
        mpp: float | None,
        mpp_source: str,
        icc: str,
        objective: Objective | None,
    ) -> None:
        super().__init__(
            path,
            reader="tifffile",
            vendor=vendor,
            levels=tuple(
                Level(
                    part.width,
                    part.height,
                    _downsample(parts[0], part),
                    (part.segment_width, part.segment_height),
                )
                for part in parts
            ),
            mpp=mpp,
            mpp_source=mpp_source,
            icc=icc,
            objective=objective,
        )
        self._parts = parts
        self._file: SharedFile | None = SharedFile(path)
        self._seconds_file = 0.0
        self.cache = SegmentCache()

    @property
    def seconds_file(self) -> float:
        """Seconds that all threads spent reading segments so far."""
        return self._seconds_file if self._file is None else self._file.seconds

    def _read_inside(self, pixels: NDArray[np.uint8], x: int, y: int, level: int) -> None:
        file = self._file
        if file is None:
            raise SlideError(f"{self.path} is closed; open it again to read from it")
        segment = partial(self._segment, file, level)
        self._parts[level].read_into(pixels, x, y, segment)

    def expect(self, corners: NDArray[np.int64], side: int, level: int) -> None:
        """Count the squares that need each segment, so that it is evicted after its last use."""
        part = self._parts[level]
        first, last = [], []
        for axis, (size_px, segment_px) in enumerate(
            ((part.width, part.segment_width), (part.height, part.segment_height))
        ):
            start = np.clip(corners[:, axis], 0, size_px)
            stop = np.clip(corners[:, axis] + side, 0, size_px)
            first.append(start // segment_px)
            last.append(np.where(stop > start, -(-stop // segment_px), start // segment_px))
        inside = (last[0] > first[0]) & (last[1] > first[1])
        columns, rows = part.columns + 1, part.rows + 1
        # Each square adds 1 to a rectangle of segments: mark its corners, then sum along both axes (2-D
        # prefix sum).
        differences = np.zeros(rows * columns, np.int64)
        corner_signs = ((1, first, first), (-1, last, first), (-1, first, last), (1, last, last))
        for sign, (column, _), (_, row) in corner_signs:
            differences += sign * np.bincount((row * columns + column)[inside], minlength=rows * columns)
        counts = differences.reshape(rows, columns).cumsum(axis=0).cumsum(axis=1)
        row, column = np.nonzero(counts)
        keys = zip([level] * len(row), column.tolist(), row.tolist(), strict=True)
        self.cache.expect(dict(zip(keys, counts[row, column].tolist(), strict=True)))

    def _segment(self, file: SharedFile, level: int, column: int, row: int) -> NDArray[np.uint8]:
        decode = partial(self._parts[level].decode, file, column, row)
        try:
            return self.cache.get((level, column, row), decode)
        except OSError as exc:
            raise SlideError(f"{self.path} can no longer be read ({exc.strerror}); check the disk") from exc
        except MemoryError as exc:
            raise ResourceError(
                f"{self.path}: no memory is left to decode a tile; use fewer --workers"
            ) from exc
        except Exception as exc:
            raise TileReadError(
                f"{self.path}: the tile at column {column}, row {row} of level {level} cannot be decoded: "
                f"{exc}"
            ) from exc

    def close(self) -> None:
        """Release the file, which closes after the last read in other threads."""
        self._seconds_file, self._file = self.seconds_file, None
        self.cache.clear()


def open_tiff(path: Path) -> TiffSlide:
    """Open a TIFF-based slide.

    Raises SlideError if level 0 is truncated or unsupported; NeedsOpenSlide if only OpenSlide places its
    tiles right.
    """
    try:
        # Else tifffile opens whatever other files the OME-XML names.
        with np.errstate(all="ignore"), TiffFile(path, _multifile=False) as tif:
            return _open(path, tif)
    except (MclstError, NeedsOpenSlide):
        raise
    except MemoryError as exc:
        raise ResourceError(f"{path} needs more memory than there is to read its directories") from exc
    except Exception as exc:
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise SlideError(f"{path} is a damaged TIFF ({reason[:200]}); copy it again") from exc


def _open(path: Path, tif: TiffFile) -> TiffSlide:
    size = path.stat().st_size
    if not len(tif.pages):
        raise SlideError(f"{path} is cut off: no image directory is within its {size:,} bytes; copy it again")
    if not _chain_ends(tif):
        raise SlideError(
            f"{path} is damaged: its chain of image directories loops or is cut off; copy it again"
        )
    # tifffile and we parse the XML of the first directory alone: here, before anything does.
    if has_entities(tif.pages.first.tags.valueof("ImageDescription", "")):
        raise SlideError(f"{path} declares XML entities in its description, as no slide does; export it anew")
    if tif.is_mmstack or tif.is_ndtiff:  # whose series spread over whatever files they name
        raise SlideError(f"{path} is part of a Micro-Manager stack; export it as one 8-bit RGB TIFF")
    for flag, kind in NEED_OPENSLIDE.items():
        if flag in tif.flags:
            raise NeedsOpenSlide(kind)
    if tif.pages.first.software.startswith("MedScan"):
        raise NeedsOpenSlide("a Trestle slide")
    series = max(tif.series, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)
    vendor = VENDORS.get(series.kind, series.kind)
    parts = read_levels(path, tif, series, vendor)
    mpp, source = tiff_mpp(tif, series.keyframe, series.kind)
    objective = tiff_objective(series.keyframe, series.kind)
    return TiffSlide(path, vendor, parts, mpp, source, profile_name(series.keyframe.iccprofile), objective)


def _chain_ends(tif: TiffFile) -> bool:
    """Whether the last directory links to no other; tifffile silently stops at a bad link."""
    form, file = tif.tiff, tif.filehandle
    offset = tif.pages[-1].offset
    file.seek(offset)
    tags = struct.unpack(form.tagnoformat, file.read(form.tagnosize))[0]
    file.seek(offset + form.tagnosize + tags * form.tagsize)
    return bool(struct.unpack(form.offsetformat, file.read(form.offsetsize))[0] == 0)


def _downsample(full: TiffLevel, part: TiffLevel) -> float:
    """Level-0 pixels per pixel: an integer if rounding of the level's size explains the rest."""
    ratios = full.width / part.width, full.height / part.height
    nearest = round(sum(ratios) / 2)
    # On a small level rounding explains several: writers that halve again and again give a power of two.
    for factor in (1 << (nearest - 1).bit_length(), 1 << (nearest.bit_length() - 1), nearest):
        if abs(full.width / factor - part.width) <= 1 and abs(full.height / factor - part.height) <= 1:
            return float(factor)
    return sum(ratios) / 2
