"""The picture of a section: named by the user, found beside its counts, or Space Ranger's downscaled one."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from mclst.sections.errors import SectionError
from mclst.sections.formats.source import SectionSource, is_image, list_folder
from mclst.sections.location import RemoteLocation, SlideLocation, is_address, slide_location
from mclst.sections.tables.delimited import detect_delimiter
from mclst.sections.tables.text_file import MAX_LIST_BYTES, read_text

TABLE = "images.csv"
"""Read from a folder of sections if it is there."""
NAME_COLUMNS = ("section", "name", "sample", "id")
IMAGE_COLUMNS = ("image", "slide", "wsi", "path")
HIRES_IMAGE = "tissue_hires_image.png"
SCALES = {HIRES_IMAGE: "tissue_hires_scalef", "tissue_lowres_image.png": "tissue_lowres_scalef"}
"""Space Ranger's pictures, and what the scalefactors beside them call their px per full-resolution px."""
ENDINGS = ("", ".ome", "_image", "_tissue_image", "_he_image", "_he_image.ome")
"""After a section's name: NAME.tif, NAME.ome.tif; NAME_image, NAME_tissue_image, NAME_he_image of 10x."""


def find_image(name: str, folders: Iterable[Path]) -> Path | None:
    """Find `<name><ending>.<image suffix>` in the folders; None if there is none.

    Raises SectionError if there are several.
    """
    names = {name + ending for ending in ENDINGS}
    images = [
        entry
        for folder in dict.fromkeys(folder.absolute() for folder in folders)
        if folder.is_dir()
        for entry in list_folder(folder)
        if is_image(entry) and entry.name[: -len(entry.suffix)] in names
    ]
    if len(images) > 1:
        raise SectionError(f"{images[0]} and {images[1]} both are images of section {name}; keep one")
    return images[0] if images else None


def parse_images(values: Iterable[str], folders: Iterable[Path] = ()) -> dict[str, SlideLocation]:
    """Slides by section name.

    Parameters
    ----------
    values : iterable of str
        NAME=SLIDE, a path or an address, or a table with the columns section and image (.csv, .tsv).
    folders : iterable of Path
        Folders of sections whose images.csv is read too; `values` win over it.

    Returns
    -------
    dict of str to Path or RemoteLocation

    Raises
    ------
    SectionError
        If a value is neither, a table is damaged, or a section has two slides.
    """
    images: dict[str, SlideLocation] = {}
    for folder in folders:
        if (folder / TABLE).is_file():
            images.update(read_image_table(folder / TABLE))
    named: dict[str, SlideLocation] = {}
    for value in values:
        if Path(value).suffix.lower() in (".csv", ".tsv") and Path(value).is_file():
            pairs = read_image_table(Path(value))
        else:
            name, equals, slide = value.partition("=")
            if is_address(value):  # it may hold a secret, so it is not repeated
                name = ""
            if not (name.strip() and equals and slide.strip()):
                shown = "an address" if is_address(value) else value
                raise SectionError(
                    f"--image {shown} is neither NAME=SLIDE nor a table; give such as A1=slides/A1.svs, or a "
                    ".csv with the columns section and image"
                )
            pairs = {name.strip(): _location(slide.strip(), Path(), f"--image {name.strip()}")}
        for name, path in pairs.items():
            if name in named and named[name] != path:
                raise SectionError(f"--image names two slides of section {name}: {named[name]} and {path}")
            named[name] = path
    return images | named


def read_image_table(path: Path) -> dict[str, SlideLocation]:
    """Read a table of sections and their slides: addresses, or paths from the table's folder.

    Raises SectionError naming the line if a cell is blank or a section is there twice.
    """
    text = read_text(path, max_unpacked=MAX_LIST_BYTES)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=detect_delimiter(text)))
    except csv.Error as error:
        raise SectionError(f"{path}: the table cannot be split into cells ({error})") from error
    header = [cell.strip().casefold() for cell in rows[0]]
    columns = [
        next((header.index(name) for name in names if name in header), None)
        for names in (NAME_COLUMNS, IMAGE_COLUMNS)
    ]
    if columns[0] is None or columns[1] is None:
        raise SectionError(f"{path}: no columns section and image among {', '.join(header)}; name them so")
    images: dict[str, SlideLocation] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        name, image = (
            row[column].strip() if column < len(row) else "" for column in columns if column is not None
        )
        if not name or not image:
            raise SectionError(f"{path}: line {line} lacks its section or its image; give both")
        if name in images:
            raise SectionError(f"{path}: line {line}: section {name} is there twice; keep one line")
        images[name] = _location(image, path.parent, f"{path}: line {line}")
    return images


def _location(text: str, folder: Path, at: str) -> SlideLocation:
    """A slide's address, or its path from a folder; SectionError for an address that is none."""
    try:
        location = slide_location(text)
    except ValueError as error:
        raise SectionError(f"{at}: {error}") from error
    return location if isinstance(location, RemoteLocation) else folder / location


def with_images(
    sources: Mapping[str, SectionSource], images: Mapping[str, SlideLocation], *, hires: bool = False
) -> dict[str, SectionSource]:
    """Give sections their slides.

    Parameters
    ----------
    sources : mapping of str to SectionSource
    images : mapping of str to Path or RemoteLocation
        Slides by section name; they win over a picture that was found.
    hires : bool
        Take Space Ranger's tissue_hires_image.png where a section has no other picture.

    Returns
    -------
    dict of str to SectionSource
        In the order of `sources`.

    Raises
    ------
    SectionError
        If a name is no section, a slide is missing, or the scale of a downscaled picture is unknown.
    """
    unknown = next((name for name in images if name not in sources), None)
    if unknown is not None:
        listed = ", ".join(list(sources)[:12]) + (", …" if len(sources) > 12 else "")
        raise SectionError(f"--image names section {unknown}, which does not exist; there are {listed}")
    result = {}
    for name, source in sources.items():
        if name in images:
            image = images[name]
            if isinstance(image, Path) and not image.exists():
                raise SectionError(f"{image}: the image of section {name} does not exist; check its path")
            source = replace(source, image=image, image_scale=_scale_of(image, source))
        elif hires and source.image is None and (picture := hires_image(source)) is not None:
            source = replace(source, image=picture, image_scale=picture_scale(picture))
        result[name] = source
    return result


def hires_image(source: SectionSource) -> Path | None:
    """Space Ranger's tissue_hires_image.png beside a section's positions, if it is there."""
    if source.spots is None:
        return None
    folder = source.spots.parent
    pictures = (folder / HIRES_IMAGE, folder / "spatial" / HIRES_IMAGE)
    return next((picture for picture in pictures if picture.is_file()), None)


def _scale_of(image: SlideLocation, source: SectionSource) -> float:
    """Px of a given image per px of the positions: below 1 for Space Ranger's own picture beside them."""
    if not isinstance(image, Path) or source.spots is None or image.name not in SCALES:
        return 1.0
    own = {folder.resolve() for folder in (source.spots.parent, source.spots.parent / "spatial")}
    return picture_scale(image) if image.resolve().parent in own else 1.0


def picture_scale(picture: Path) -> float:
    """Px of Space Ranger's picture per full-resolution px; SectionError if its scalefactors do not say."""
    path = picture.with_name("scalefactors_json.json")
    try:
        factors = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SectionError(
            f"{path}: the scalefactors cannot be read ({error}), which {picture.name} needs; copy them again"
        ) from error
    key = SCALES[picture.name]
    scale = factors.get(key) if isinstance(factors, dict) else None
    if (
        isinstance(scale, bool)
        or not isinstance(scale, (int, float))
        or not (math.isfinite(scale) and 0 < scale <= 1)
    ):
        raise SectionError(f"{path}: {key} is {scale!r}; give a number above 0 and up to 1")
    return float(scale)


def missing_image(source: SectionSource) -> str:
    """Say that a section has no picture, where one was looked for, and what to do; a sentence."""
    places = " or ".join(str(place) for place in dict.fromkeys(source.places)) or str(source.path.parent)
    also = "" if source.format != "xenium" else ", or *he_image.ome.tif,"
    text = (
        f"section {source.name} ({source.path}) has no image: there is no {source.name}.tif, .svs, .ndpi, "
        f".jpg or .png{also} in {places}; give --image {source.name}=SLIDE"
    )
    picture = hires_image(source)
    return f"{text}, or --hires to take {picture.name} ({picture})" if picture is not None else text
