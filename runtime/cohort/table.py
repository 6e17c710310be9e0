"""The table of a cohort: a slide per row, with its options."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mclst.runtime.errors import InputError
from mclst.runtime.run.job import Job
from mclst.runtime.run.options import RETRIEVAL_OPTIONS
from mclst.sections.location import SlideLocation, slide_location
from mclst.sections.tables.delimited import Table, read_table

JOB_COLUMNS = {
    "spots": "spots",
    "grid": "grid",
    "tissue-mask": "mask",
    "region": "region",
    "bin": "bins",
    "reader": "reader",
    "all-spots": "all_spots",
}
"""Column, also an option of mclst-infer → field of Job."""
TRUST_COLUMNS = {
    "any-stain": "any_stain",
    "intervals": "intervals",
    "reliable": "reliable",
    "outside-level": "outside_level",
    "max-outside": "max_outside",
}
OPTION_COLUMNS = {"genes": "genes", "mpp": "mpp", "max-bad-tiles": "max_bad_tiles", **TRUST_COLUMNS}
"""Column → field of RunOptions."""
COLUMNS = (*JOB_COLUMNS, *OPTION_COLUMNS)
PATHS = ("spots", "tissue-mask", "region")
LONGEST_NAME = 200
"""Bytes of a map's name: the files next to it have longer names, and a file system allows 255."""

Convert = Callable[[str, str], Any]
"""(option without dashes, text) → value; raises ValueError."""


def read_cohort(path: Path, folder: Path, defaults: Job, convert: Convert) -> dict[str, Job]:
    """Read a cohort's table.

    Parameters
    ----------
    path : Path
        Text separated by commas, semicolons or tabs, with columns `slide` and `spots` or `grid`, and
        optionally `name`, COLUMNS and RETRIEVAL_OPTIONS. Paths are relative to its folder; a slide may be an
        address.
    folder : Path
        Where the maps go, as `<name>.h5ad`; the name is by default the slide's stem.
    defaults : Job
        Supplies the options of empty cells.
    convert : callable
        Understands a cell as the option of its column.

    Returns
    -------
    dict of str to Job
        By name, in the table's order.

    Raises
    ------
    SectionError, InputError
        Naming line and column.
    """
    table = read_table(path, lambda first: None)
    names = [name.lower().replace("_", "-") for name in table.names]
    known = ("slide", "name", *COLUMNS, *RETRIEVAL_OPTIONS)
    for header, name in zip(table.names, names, strict=True):
        if name not in known or names.count(name) > 1:
            raise InputError(
                f"{path}: column {header!r} is unknown or occurs twice; the columns are {', '.join(known)}"
            )
    if "slide" not in names:
        raise InputError(f"{path} has no column 'slide'; its columns are {', '.join(table.names)}")
    jobs: dict[str, Job] = {}
    lines: dict[str, str] = {}
    for row in range(len(table)):
        texts = {
            name: table.texts(column, slice(row, row + 1))[0].strip() for column, name in enumerate(names)
        }
        cells = {name: text for name, text in texts.items() if text}
        name, job = _job(table, row, cells, folder, defaults, convert)
        key = name.casefold()
        if key in lines:
            raise InputError(
                f"{table.location(row)}: the map would be named {name!r} as that of {lines[key]}; give names "
                "in a column 'name'"
            )
        lines[key] = f"{table.unit} {table.row[row]}"
        jobs[name] = job
    return jobs


def _job(
    table: Table, row: int, cells: Mapping[str, str], folder: Path, defaults: Job, convert: Convert
) -> tuple[str, Job]:
    at = table.location(row)
    if "slide" not in cells:
        raise InputError(f"{at}: column 'slide' is empty; name the slide's file")
    slide = _slide(table, at, cells["slide"])
    name = cells.get("name", slide.stem)
    if os.sep in name or name.startswith(".") or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise InputError(f"{at}: {name!r} cannot name a map; give a plain name in a column 'name'")
    changes: dict[str, Any] = {}
    options: dict[str, Any] = {}
    retrieval: dict[str, Any] = {}
    for column, text in cells.items():
        if column in ("slide", "name"):
            continue
        try:
            value = table.path.parent / text if column in PATHS else convert(column, text)
        except ValueError as error:
            raise InputError(f"{at}, column {column!r}: {error}") from error
        if column in RETRIEVAL_OPTIONS:
            retrieval[column] = value
        elif column in OPTION_COLUMNS:
            options[OPTION_COLUMNS[column]] = value
        else:
            changes[JOB_COLUMNS[column]] = value
    if "spots" in changes and "grid" in changes:
        raise InputError(f"{at} gives both spots and grid; leave one of them empty")
    if "spots" in changes:
        changes["grid"] = None
    options["retrieval"] = {**defaults.options.retrieval, **retrieval}
    grid = changes.get("grid", defaults.grid)
    if grid is None and changes.get("spots", defaults.spots) is None:
        raise InputError(f"{at} gives neither spots nor grid; give one, or --grid for all slides")
    if grid is None and ("mask" in changes or "genes" in options):
        raise InputError(f"{at}: tissue-mask and genes belong to grid, and this slide has spots")
    if grid is None:
        changes["mask"] = None
        options["genes"] = ()
    return name, replace(
        defaults,
        slide=slide,
        out=folder / f"{name}.h5ad",
        options=replace(defaults.options, **options),
        **changes,
    )


def _slide(table: Table, at: str, text: str) -> SlideLocation:
    try:
        slide = slide_location(text)
    except ValueError as error:
        raise InputError(f"{at}, column 'slide': {error}") from error
    return table.path.parent / slide if isinstance(slide, Path) else slide


def shard_of(jobs: Mapping[str, Job], part: int, parts: int) -> dict[str, Job]:
    """Return every `parts`-th job from the `part`-th on, counted from 1."""
    return dict(list(jobs.items())[part - 1 :: parts])
