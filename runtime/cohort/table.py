"""The table of a cohort: a slide per row, with options of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mclst.runtime.errors import InputError
from mclst.runtime.run.job import Job
from mclst.sections.tables.delimited import Table, read_table

COLUMNS = {
    "spots": "spots",
    "grid": "grid",
    "tissue-mask": "mask",
    "genes": "genes",
    "mpp": "mpp",
    "reader": "reader",
    "all-spots": "all_spots",
    "max-bad-tiles": "max_bad_tiles",
}
"""Column, which is an option of mclst-infer too → field of a Job."""
RETRIEVAL = ("k", "rank", "distance", "weighting", "temperature")
PATHS = ("spots", "tissue-mask")
LONGEST_NAME = 200
"""Bytes of a map's name: what stands beside it is named after it, within a file system's 255."""

Convert = Callable[[str, str], Any]
"""(option without dashes, text) → its value; raises ValueError in words."""


def read_cohort(path: Path, folder: Path, otherwise: Job, convert: Convert) -> dict[str, Job]:
    """Name of each slide → its job, in the table's order.

    path: text separated by commas, semicolons or tabs, with columns `slide`, `spots` (or `grid`), if wished `name`, and
    any of COLUMNS and RETRIEVAL; an empty cell leaves the option as `otherwise` has it. Paths are taken from the
    table's folder on. folder: where the maps go, as `<name>.h5ad`; a name is the slide's stem where none is given.
    Raises SectionError or InputError, naming line and column.
    """
    table = read_table(path, lambda first: None)
    names = [name.lower().replace("_", "-") for name in table.names]
    known = ("slide", "name", *COLUMNS, *RETRIEVAL)
    for header, name in zip(table.names, names, strict=True):
        if name not in known or names.count(name) > 1:
            raise InputError(
                f"{path}: column {header!r} is not known or stands there twice; the columns are {', '.join(known)}"
            )
    if "slide" not in names:
        raise InputError(f"{path} has no column 'slide'; its columns are {', '.join(table.names)}")
    jobs: dict[str, Job] = {}
    lines: dict[str, str] = {}
    for row in range(len(table)):
        here = slice(row, row + 1)
        cells = {name: table.texts(column, here)[0].strip() for column, name in enumerate(names)}
        given = {name: text for name, text in cells.items() if text}
        name, job = _job(table, row, given, folder, otherwise, convert)
        key = name.casefold()
        if key in lines:
            raise InputError(
                f"{table.location(row)}: the map would be named {name!r} as that of {lines[key]}; give names in a column 'name'"
            )
        lines[key] = f"{table.unit} {table.row[row]}"
        jobs[name] = job
    return jobs


def _job(
    table: Table, row: int, given: Mapping[str, str], folder: Path, otherwise: Job, convert: Convert
) -> tuple[str, Job]:
    where = table.location(row)
    if "slide" not in given:
        raise InputError(f"{where}: column 'slide' is empty; name the slide's file")
    slide = table.path.parent / given["slide"]
    name = given.get("name", slide.stem)
    if os.sep in name or name.startswith(".") or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise InputError(f"{where}: {name!r} cannot name a map; give a plain name in a column 'name'")
    changed: dict[str, Any] = {}
    retrieval: dict[str, Any] = {}
    for column, text in given.items():
        if column in ("slide", "name"):
            continue
        try:
            value = table.path.parent / text if column in PATHS else convert(column, text)
        except ValueError as error:
            raise InputError(f"{where}, column {column!r}: {error}") from error
        if column in RETRIEVAL:
            retrieval[column] = value
        else:
            changed[COLUMNS[column]] = value
    if "spots" in changed and "grid" in changed:
        raise InputError(f"{where} gives both spots and grid; leave one of them empty")
    if "spots" in changed:
        changed["grid"] = None
    job = replace(
        otherwise,
        slide=slide,
        out=folder / f"{name}.h5ad",
        retrieval={**otherwise.retrieval, **retrieval},
        **changed,
    )
    if job.spots is None and job.grid is None:
        raise InputError(f"{where} gives neither spots nor grid; give one, or --grid for all slides")
    if job.grid is None and ("mask" in changed or "genes" in changed):
        raise InputError(f"{where}: tissue-mask and genes belong to grid, and this slide has spots")
    if job.grid is None:
        job = replace(job, mask=None, genes=())
    return name, job


def shard_of(jobs: Mapping[str, Job], part: int, parts: int) -> dict[str, Job]:
    """Every `parts`-th job, from the `part`-th on, counted from 1."""
    return dict(list(jobs.items())[part - 1 :: parts])
