"""Detect a file's format from its first bytes, never from its name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mclst.runtime.errors import SlideError
from mclst.sections.location import SlideLocation

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
HEAD_BYTES = 512
ZARR_METADATA = ("zarr.json", ".zattrs", ".zgroup")
"""One of these is in the folder of a Zarr group."""

# Files that users pass by mistake, and what to do.
MISTAKEN = (
    (b"version https://git-lfs", "a git-lfs pointer, not the slide itself; fetch it with `git lfs pull`"),
    (b"<?xml", "an XML text, not a slide"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"\xfd7zXZ\0", "xz-compressed; unpack it first"),
    (b"%PDF", "a PDF; export the image as TIFF"),
    (b"GIF8", "a GIF; save it as PNG or TIFF"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture; save it as TIFF"),
    (b"\0\0\0\x0cjP  ", "a bare JPEG 2000 picture; save it as TIFF"),
    (b"\xff\x4f\xff\x51", "a bare JPEG 2000 picture; save it as TIFF"),
)
HTML = (b"<!doctype html", b"<html")


def detect_format(path: Path) -> str:
    """Name the format: "jpeg", "png", "tiff", "ome-zarr", "hdf5", or a slide format that OpenSlide reads.

    Raises SlideError if the file is missing, not a regular file, empty, or of an unknown format.
    """
    if os.path.isdir(path) and any(os.path.isfile(path / name) for name in ZARR_METADATA):
        return "ome-zarr"
    kind = format_of(path, _head(path))
    # A MIRAX slide is a JPEG thumbnail whose pixels are in a folder of the same stem.
    if kind == "jpeg" and path.with_suffix("").joinpath("Slidedat.ini").is_file():
        return "mirax"
    if kind == "tiff":
        _refuse_cellsens(path)
    return kind


def format_of(path: SlideLocation, head: bytes) -> str:
    """Name the format of a file by its first bytes; SlideError for an unknown one."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(TIFF_MAGIC):
        return "tiff"
    if head.startswith(HDF5_MAGIC):
        return "hdf5"
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"ZISRAWFILE"):
        return "zeiss czi"
    if head.startswith(b"SQLite format 3\0"):
        return "sakura svslide"
    if b"Virtual Microscope Specimen]" in head[:64]:
        return "hamamatsu vms"
    raise SlideError(f"{path} is {_describe(head)}")


def _head(path: Path) -> bytes:
    try:
        # Checked before opening: opening a pipe would block.
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        link = " is a link to a file that" if path.is_symlink() else ""
        raise SlideError(f"{path}{link} does not exist; check the path") from None
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise SlideError(f"{path} cannot be read ({reason}); check the path and its permissions") from exc
    if stat.S_ISDIR(mode):
        raise SlideError(f"{path} is a folder and no OME-Zarr; give the slide file itself")
    if not stat.S_ISREG(mode):
        raise SlideError(
            f"{path} is not a regular file (a pipe, socket or device); give the slide file itself"
        )
    if not head:
        raise SlideError(f"{path} is empty (0 bytes); copy or download it again")
    return head


def _describe(head: bytes) -> str:
    for magic, description in MISTAKEN:
        if head.startswith(magic):
            return description
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(HTML):
        return "an HTML page, not a slide; the download went wrong, fetch it again"
    if head.startswith(b"BM") and b"\0" in head:
        return "a BMP picture; save it as PNG or TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP picture; save it as PNG or TIFF"
    if not any(head):
        return "nothing but zero bytes; the copy or download failed, fetch it again"
    text = head.decode(errors="ignore")
    printable = all(letter.isprintable() or letter in "\t\r\n" for letter in text)
    content = "text" if printable else f"bytes that start {head[:4].hex(' ')}"
    return (
        f"not a slide or image that mclst knows (it holds {content}); "
        "give a JPEG, a PNG or a whole-slide image"
    )


def _refuse_cellsens(path: Path) -> None:
    """Refuse a cellSens .vsi: a small TIFF whose slide is in `_NAME_/stack…/frame_t.ets`."""
    pixels = path.with_name(f"_{path.stem}_")
    if pixels.is_dir() and next(pixels.glob("stack*/*.ets"), None):
        raise SlideError(
            f"{path} is a cellSens slide whose pixels are in {pixels.name}, which mclst does not read; "
            "export it as OME-TIFF"
        )
