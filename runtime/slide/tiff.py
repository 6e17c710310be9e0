"""TIFF-based slides of all vendors: Aperio, Hamamatsu, Philips, OME, generic pyramids, plain strips.

tifffile parses the directories once. After that a read takes only the tiles or strips it needs, by offset, so
that threads share no file position.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tifffile import TiffFile

from mclst.runtime.decoding.color import profile_name
from mclst.runtime.errors import MclstError, ResourceError, SlideError
from mclst.runtime.slide.base import WHITE
from mclst.runtime.slide.metadata import has_entities, tiff_mpp, tiff_objective
from mclst.runtime.slide.segmented_slide import SegmentedSlide
from mclst.runtime.slide.tiff_pyramid import read_levels
from mclst.runtime.storage.files import ByteFile
from mclst.sections.errors import is_out_of_memory
from mclst.sections.location import SlideLocation

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


def open_tiff(
    path: SlideLocation, file: ByteFile, header: Path | BinaryIO, background: int = WHITE
) -> SegmentedSlide[ByteFile]:
    """Open a TIFF-based slide.

    file: its bytes. header: what tifffile reads its directories from. background: gray behind transparency.

    Raises SlideError if level 0 is truncated or unsupported; NeedsOpenSlide if only OpenSlide places its
    tiles right.
    """
    try:
        # Else tifffile opens whatever other files the OME-XML names.
        with np.errstate(all="ignore"), TiffFile(header, _multifile=False) as tif:
            return _open(path, file, tif, background)
    except (MclstError, NeedsOpenSlide):
        raise
    except Exception as exc:
        if is_out_of_memory(exc):
            raise ResourceError(f"{path} needs more memory than there is to read its directories") from exc
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise SlideError(f"{path} is a damaged TIFF ({reason[:200]}); copy it again") from exc


def _open(path: SlideLocation, file: ByteFile, tif: TiffFile, background: int) -> SegmentedSlide[ByteFile]:
    if not len(tif.pages):
        raise SlideError(
            f"{path} is cut off: no image directory is within its {file.size:,} bytes; copy it again"
        )
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
    parts = [replace(part, background=background) for part in read_levels(path, file, tif, series, vendor)]
    mpp, source = tiff_mpp(tif, series.keyframe, series.kind)
    return SegmentedSlide(
        path,
        file,
        parts,
        reader="tifffile",
        vendor=vendor,
        mpp=mpp,
        mpp_source=source,
        icc=profile_name(series.keyframe.iccprofile),
        objective=tiff_objective(series.keyframe, series.kind),
    )


def _chain_ends(tif: TiffFile) -> bool:
    """Whether the last directory links to no other; tifffile silently stops at a bad link."""
    form, file = tif.tiff, tif.filehandle
    offset = tif.pages[-1].offset
    file.seek(offset)
    tags = struct.unpack(form.tagnoformat, file.read(form.tagnosize))[0]
    file.seek(offset + form.tagnosize + tags * form.tagsize)
    return bool(struct.unpack(form.offsetformat, file.read(form.offsetsize))[0] == 0)
