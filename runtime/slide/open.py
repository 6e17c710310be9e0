"""Open a slide with the reader that fits its content."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from mclst.runtime.choices import READERS
from mclst.runtime.errors import SlideError
from mclst.runtime.slide.base import WHITE, Slide
from mclst.sections.location import RemoteLocation, SlideLocation, slide_location

if TYPE_CHECKING:
    from mclst.runtime.storage.files import ByteFile
    from mclst.runtime.storage.remote_file import RemoteFile

READER_OF = {"jpeg": "pillow", "png": "pillow", "tiff": "tifffile", "ome-zarr": "zarr", "hdf5": "hdf5"}
"""OpenSlide reads every other format."""


def open_slide(
    path: str | Path | RemoteLocation, *, reader: str = "auto", lazy: bool = False, background: int = WHITE
) -> Slide:
    """Open a slide by its content, whatever its name.

    Parameters
    ----------
    path : str, Path or RemoteLocation
        A JPEG, PNG, TIFF-based or other whole-slide image, the folder of an OME-Zarr, or HEST's
        patches: a path, or an
        address (s3://, gs://, https://), of which only the tiles that are read are fetched.
    reader : str
        "auto", or "pillow", "tifffile", "openslide", "zarr" or "hdf5" to insist on one.
    lazy : bool
        Leave a JPEG picture to be decoded by its first read, which then raises what opening would. What was
        announced by then, by `expect` and `expect_overview`, is all that is kept.
    background : int
        Gray level behind transparent pixels of a PNG or TIFF: 255 is a slide's glass, 0 a mask's background.

    Returns
    -------
    Slide

    Raises
    ------
    SlideError
        If the file is missing, no image, damaged or of an unsupported kind (16-bit, fluorescence planes, …).
    ResourceError
        If it would be decoded in one piece of more than `MAX_DECODED_PX` pixels, or a server does not answer.
    """
    start = time.perf_counter()
    if reader not in READERS:
        raise SlideError(f"reader is {reader!r}; choose one of {', '.join(READERS)}")
    try:
        location = slide_location(path)
    except ValueError as error:
        raise SlideError(str(error)) from error
    slide = (
        _open_remote(location, reader, lazy, background)
        if isinstance(location, RemoteLocation)
        else _open(location, reader, lazy, background)
    )
    slide.seconds_opening = time.perf_counter() - start
    return slide


def _check_reader(location: SlideLocation, kind: str, reader: str) -> str:
    """Return the reader of a format; SlideError if it is not the one insisted on."""
    default = READER_OF.get(kind, "openslide")
    allowed = {"auto", default} if kind in ("ome-zarr", "hdf5") else {"auto", default, "openslide"}
    if reader not in allowed:
        raise SlideError(
            f"{location} is {kind.upper()}, which the {reader} reader does not read; use --reader auto"
        )
    return default if reader == "auto" else reader


# Readers are imported on demand: codecs load slowly, and OpenSlide is an extra.
def _open(path: Path, reader: str, lazy: bool, background: int) -> Slide:
    from mclst.runtime.slide.detect_format import detect_format

    kind = detect_format(path)
    chosen = _check_reader(path, kind, reader)
    if chosen == "openslide":
        from mclst.runtime.slide.openslide_reader import open_with_openslide

        return open_with_openslide(path, kind)
    if chosen == "hdf5":
        from mclst.runtime.slide.patches import open_patches

        return open_patches(path)
    if chosen == "zarr":
        from mclst.runtime.slide.ome_zarr import open_ome_zarr
        from mclst.runtime.storage.files import LocalFolder

        return open_ome_zarr(path, LocalFolder(path))
    if chosen == "pillow":
        from mclst.runtime.slide.picture import open_picture

        return open_picture(path, kind, _local_file(path), lazy=lazy, background=background)
    from mclst.runtime.slide.tiff import NeedsOpenSlide, open_tiff

    try:
        return open_tiff(path, _local_file(path), path, background)
    except NeedsOpenSlide as need:
        if reader == "tifffile":
            raise SlideError(
                f"{path} is {need}, whose tiles only OpenSlide places right; use --reader auto"
            ) from need
        from mclst.runtime.slide.openslide_reader import open_with_openslide

        return open_with_openslide(path, str(need))


def _local_file(path: Path) -> ByteFile:
    from mclst.runtime.storage.files import SharedFile

    try:
        return SharedFile(path)
    except OSError as error:
        raise SlideError(f"{path} can no longer be read ({error.strerror}); check the disk") from error


def _open_remote(location: RemoteLocation, reader: str, lazy: bool, background: int) -> Slide:
    from mclst.runtime.storage.remote_file import RemoteFile, open_remote

    source = open_remote(location)
    try:
        if isinstance(source, RemoteFile):
            slide = _open_remote_file(location, source, reader, lazy, background)
        else:
            from mclst.runtime.slide.ome_zarr import open_ome_zarr

            _check_reader(location, "ome-zarr", reader)
            slide = open_ome_zarr(location, source)
    except BaseException:
        source.close()
        raise
    slide.remote = source.objects
    return slide


def _open_remote_file(
    location: RemoteLocation, file: RemoteFile, reader: str, lazy: bool, background: int
) -> Slide:
    from mclst.runtime.slide.detect_format import format_of

    kind = format_of(location, file.head)
    chosen = _check_reader(location, kind, reader)
    if chosen == "pillow":
        from mclst.runtime.slide.picture import open_picture

        return open_picture(location, kind, file, lazy=lazy, background=background)
    if chosen == "tifffile":
        from mclst.runtime.slide.tiff import NeedsOpenSlide, open_tiff
        from mclst.runtime.storage.remote_file import HeaderReader

        try:
            return open_tiff(location, file, cast(BinaryIO, HeaderReader(file)), background)
        except NeedsOpenSlide as need:
            kind = str(need)
    raise SlideError(f"{location} ({kind}) is read only as a file of this machine; download it first")
