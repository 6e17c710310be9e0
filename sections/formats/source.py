"""Where a section lies on disk: found by name, nothing of it read yet."""

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
    """The files of one section.

    name: "C4".
    format: which reader takes it.
    path: the counts: a .tsv[.gz], a 10x .h5, a matrix folder or a .h5ad.
    spots: the table with the spots' pixels, where the format keeps it apart and the file is there.
    image: the section's H&E image, where one of its name lies beside it.
    """

    name: str
    format: Format
    path: Path
    spots: Path | None = None
    image: Path | None = None


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, hidden files left out; SectionError where it cannot be listed."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise SectionError(f"{folder}: the folder cannot be read ({error.strerror or error})") from error


def image_of(name: str, folders: Iterable[Path]) -> Path | None:
    """Find `<name>.<image suffix>` (or `<name>.ome.tif`) in the folders; None where there is none.

    Raises SectionError where there are several, for none of them is then the section's own.
    """
    found = [
        entry
        for folder in dict.fromkeys(folder.absolute() for folder in folders)
        if folder.is_dir()
        for entry in entries(folder)
        if is_image(entry) and entry.name[: -len(entry.suffix)] in (name, f"{name}.ome")
    ]
    if len(found) > 1:
        raise SectionError(f"{found[0]} and {found[1]} both are images of section {name}; keep one")
    return found[0] if found else None


def is_image(path: Path) -> bool:
    """Tell by its suffix whether a file may be a slide or picture."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
