"""Files of a section on disk, found by name and not read yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mclst.sections.errors import SectionError
from mclst.sections.location import SlideLocation

Format = Literal["legacy-st", "space-ranger", "h5ad", "xenium", "spatialdata"]

IMAGE_SUFFIXES = frozenset({".tif", ".tiff", ".btf", ".svs", ".ndpi", ".jpg", ".jpeg", ".png"})


@dataclass(frozen=True)
class SectionSource:
    """Files of one section.

    Attributes
    ----------
    name : str
        For example "C4".
    format : str
        Which reader takes it.
    path : Path
        The counts: a .tsv[.gz], a 10x .h5, a matrix folder, a .h5ad or a SpatialData store.
    spots : Path, optional
        Table with the spots' coordinates, if the format has one and the file exists.
    image : Path or RemoteLocation, optional
        H&E image of the section.
    image_scale : float
        Px of `image` per px of the positions: below 1 for a downscaled picture.
    places : tuple of Path
        Folders where an image was looked for.
    aliases : Path, optional
        Table of gene symbols and their other names.
    pooled : int
        Bins of the files that make one bin of the section, along an axis.
    bins : str
        Of Xenium: "cells", or PITCH or PITCH/DIAMETER in µm.
    region : str
        Of SpatialData: the element that the table annotates.
    """

    name: str
    format: Format
    path: Path
    spots: Path | None = None
    image: SlideLocation | None = None
    image_scale: float = 1.0
    places: tuple[Path, ...] = ()
    aliases: Path | None = None
    pooled: int = 1
    bins: str = ""
    region: str = ""


def list_folder(folder: Path) -> list[Path]:
    """Sorted entries of a folder without hidden files; SectionError if it cannot be listed."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise SectionError(f"{folder}: the folder cannot be read ({error.strerror or error})") from error


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
