"""Open a slide with the reader that fits its content."""

from __future__ import annotations

import time
from pathlib import Path

from mclst.runtime.choices import READERS
from mclst.runtime.errors import SlideError
from mclst.runtime.slide.base import Slide


def open_slide(path: str | Path, *, reader: str = "auto") -> Slide:
    """Open a slide by its content, whatever its name.

    Parameters
    ----------
    path : str or Path
        A JPEG, PNG, TIFF-based or other whole-slide image, or the folder of an OME-Zarr.
    reader : str
        "auto", or "pillow", "tifffile", "openslide" or "zarr" to insist on one.

    Returns
    -------
    Slide

    Raises
    ------
    SlideError
        If the file is missing, no image, damaged or of an unsupported kind (16-bit, fluorescence planes, …).
    ResourceError
        If it would be decoded in one piece of more than `MAX_DECODED_PX` pixels.
    """
    start = time.perf_counter()
    slide = _open(Path(path), reader)
    slide.seconds_opening = time.perf_counter() - start
    return slide


def _open(path: Path, reader: str) -> Slide:
    from mclst.runtime.slide.detect_format import detect_format

    if reader not in READERS:
        raise SlideError(f"reader is {reader!r}; choose one of {', '.join(READERS)}")
    kind = detect_format(path)
    default = {"jpeg": "pillow", "png": "pillow", "tiff": "tifffile", "ome-zarr": "zarr"}.get(
        kind, "openslide"
    )
    if reader not in ("auto", default, "openslide") or (default == "zarr" and reader == "openslide"):
        raise SlideError(
            f"{path} is {kind.upper()}, which the {reader} reader does not read; use --reader auto"
        )
    if default == "zarr":
        from mclst.runtime.slide.ome_zarr import open_ome_zarr
        from mclst.runtime.storage.files import LocalFolder

        return open_ome_zarr(path, LocalFolder(path))
    # Readers are imported on demand: codecs load slowly, and OpenSlide is an extra.
    if reader == "openslide" or default == "openslide":
        from mclst.runtime.slide.openslide_reader import open_with_openslide

        return open_with_openslide(path, kind)
    if default == "pillow":
        from mclst.runtime.slide.picture import open_picture

        return open_picture(path, kind)
    from mclst.runtime.slide.tiff import NeedsOpenSlide, open_tiff

    try:
        return open_tiff(path)
    except NeedsOpenSlide as need:
        if reader == "tifffile":
            raise SlideError(
                f"{path} is {need}, whose tiles only OpenSlide places right; use --reader auto"
            ) from need
        from mclst.runtime.slide.openslide_reader import open_with_openslide

        return open_with_openslide(path, str(need))
