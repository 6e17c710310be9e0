"""Files of a section on disk, found by name and not read yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mclst.sections.errors import SectionError

Format = Literal["legacy-st", "space-ranger", "h5ad"]

IMAGE_SUFFIXES = frozenset({".tif", ".tiff", ".btf", ".svs", ".ndpi", ".jpg", ".jpeg", ".png"})


@dataclass(frozen=True)
class SectionSource:
    """Files of one section.

    Attributes
    ----------
    name : str
        For example "C4".
    format : str
        Which reader takes it: "legacy-st", "space-ranger" or "h5ad".
    path : Path
        The counts: a .tsv[.gz], a 10x .h5, a matrix folder or a .h5ad.
    spots : Path, optional
        Table with the spots' pixel coordinates, if the format has one and the file exists.
    image : Path, optional
        H&E image of the same name next to the section.
    """

    name: str
    format: Format
    path: Path
    spots: Path | None = None
    image: Path | None = None


def list_folder(folder: Path) -> list[Path]:
    """Sorted entries of a folder without hidden files; SectionError if it cannot be listed."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise SectionError(f"{folder}: the folder cannot be read ({error.strerror or error})") from error


def find_image(name: str, folders: Iterable[Path]) -> Path | None:
    """Find `<name>.<image suffix>` (or `<name>.ome.tif`) in the folders; None if there is none.

    Raises SectionError if there are several.
    """
    images = [
        entry
        for folder in dict.fromkeys(folder.absolute() for folder in folders)
        if folder.is_dir()
        for entry in list_folder(folder)
        if is_image(entry) and entry.name[: -len(entry.suffix)] in (name, f"{name}.ome")
    ]
    if len(images) > 1:
        raise SectionError(f"{images[0]} and {images[1]} both are images of section {name}; keep one")
    return images[0] if images else None


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
