"""HEST-1k: `st/ID.h5ad`, its slide `wsis/ID.tif`, its patches `patches/ID.h5`, and `metadata/ID.json`.

Layout: Jaume et al. 2024; mahmoodlab/HEST, `load_hest`. Positions are centers in level-0 px of the slide.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from mclst.sections.errors import SectionError
from mclst.sections.formats.source import IMAGE_SUFFIXES

EXPRESSION, SLIDES, METADATA, PATCHES = "st", "wsis", "metadata", "patches"
MPP = "pixel_size_um_estimated"
"""µm per level-0 px: from the array of spots or the alignment, where the file's own value may be wrong."""


def expression_folder(folder: Path) -> Path:
    """The folder with the .h5ad files: `st/` of a HEST folder, else the folder itself."""
    inner = folder / EXPRESSION
    return inner if inner.is_dir() and root_of(inner / "ID.h5ad") is not None else folder


def root_of(path: Path) -> Path | None:
    """The HEST folder of a file `st/ID.h5ad`; None for a file elsewhere."""
    folder = path.absolute().parent
    beside = (folder.parent / name for name in (SLIDES, METADATA, PATCHES))
    return folder.parent if folder.name == EXPRESSION and any(entry.is_dir() for entry in beside) else None


def find_slide(root: Path, name: str) -> Path | None:
    """`wsis/ID.tif`, or another image suffix, else `patches/ID.h5`.

    One look per suffix, since a folder may hold a thousand.
    """
    paths = [root / SLIDES / f"{name}{suffix}" for suffix in sorted(IMAGE_SUFFIXES)]
    slides = [path for path in paths if path.is_file()]
    if len(slides) > 1:
        raise SectionError(f"{slides[0]} and {slides[1]} both are images of section {name}; keep one")
    patches = root / PATCHES / f"{name}.h5"
    return slides[0] if slides else patches if patches.is_file() else None


def read_mpp(path: Path) -> float | None:
    """µm per level-0 px of a section's slide, by its metadata; None if there are none, or they lack it.

    path: the section's `st/ID.h5ad`. Raises SectionError if the metadata are damaged.
    """
    return None if root_of(path) is None else mpp_of_sample(path)


def mpp_of_sample(path: Path) -> float | None:
    """The same by any file of a sample in one of HEST's folders: `metadata/ID.json` beside the folder."""
    metadata = path.absolute().parent.parent / METADATA / f"{path.stem}.json"
    if not metadata.is_file():
        return None
    try:
        values = json.loads(metadata.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SectionError(f"{metadata}: the metadata cannot be read ({error}); download it again") from error
    mpp = values.get(MPP) if isinstance(values, dict) else None
    if mpp is None:
        return None
    if isinstance(mpp, bool) or not isinstance(mpp, int | float) or not (math.isfinite(mpp) and mpp > 0):
        raise SectionError(f"{metadata}: {MPP} is {mpp!r}; give a number of µm above 0, or take it out")
    return float(mpp)
