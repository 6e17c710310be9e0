"""Spot tables: where on the slide to predict, or where a section was measured.

What a table is, is told from its content, never from its name: Space Ranger positions of any age, a legacy ST
selection, Seurat coordinates, plain pixel tables, Parquet, AnnData, or a folder that Space Ranger wrote.
"""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.section import Spots
from mclst.sections.tables.cells import (
    LARGEST,
    as_objects,
    flags,
    identifiers,
    numbers,
    require_unique,
    typed,
    whole_numbers,
)
from mclst.sections.tables.delimited import Table, read_table
from mclst.sections.tables.h5ad_obs import PlacedObs, placed_obs, read_placed_obs
from mclst.sections.tables.layouts import (
    ID_COLUMNS,
    SPACE_RANGER,
    Layout,
    recognise,
    space_ranger_1,
)

POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
FLAGS = ("in_tissue", "selected")


def read_spots(source: Path | str | pd.DataFrame | ad.AnnData, *, all_spots: bool = False) -> Spots:
    """Read a table of spots; rows stay in its order.

    source: a text table (tab, semicolon or comma), .parquet, .h5ad (obsm["spatial"]), a Space Ranger folder
        (`outs/` or `spatial/`), or such a table in memory.
    all_spots: keep the spots that the table marks as off the tissue (in_tissue or selected = 0).

    Raises SectionError, in one sentence with file, line and column, where the table is not recognised, a kept
    spot's coordinate is not a finite number, a spot stands twice, or no spot is left.
    """
    if isinstance(source, pd.DataFrame):
        return _from_table(_of_frame(Path("DataFrame"), source), all_spots)
    if isinstance(source, ad.AnnData):
        return _from_obs(Path("AnnData"), placed_obs(source), all_spots)
    path = Path(source)
    if path.is_dir():
        path = positions_file(path)
    magic = _first_bytes(path)
    if magic.startswith(b"\x89HDF"):
        return _from_obs(path, read_placed_obs(path), all_spots)
    if magic.startswith(b"PAR1"):
        return _from_table(_of_frame(path, _read_parquet(path)), all_spots)
    return _from_table(read_table(path, space_ranger_1), all_spots)


def positions_file(folder: Path) -> Path:
    """Find the positions file of a Space Ranger folder (`outs/`, `spatial/` or the one that holds `outs/`).

    Raises SectionError where there is none, or several.
    """
    for place in (folder / "spatial", folder / "outs" / "spatial", folder):
        found = [place / name for name in POSITIONS if (place / name).is_file()]
        if len(found) > 1:
            raise SectionError(f"{found[0]} and {found[1]} both are positions files; name the one to take")
        if found:
            return found[0]
    raise SectionError(
        f"{folder}: no {', '.join(POSITIONS)} in the folder or its spatial/; name the spots file"
    )


def spot_diameter(positions: Path) -> float | None:
    """Read spot_diameter_fullres (level-0 px) from the scalefactors beside a positions file; None where not said."""
    path = positions.with_name("scalefactors_json.json")
    if not path.is_file():
        return None
    try:
        factors = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SectionError(
            f"{path}: the scalefactors are not JSON ({error}); take them from Space Ranger anew"
        ) from error
    diameter = factors.get("spot_diameter_fullres") if isinstance(factors, dict) else None
    if diameter is None:
        return None
    if not isinstance(diameter, (int, float)) or not math.isfinite(diameter) or diameter <= 0:
        raise SectionError(f"{path}: spot_diameter_fullres is {diameter!r}; give a number of pixels above 0")
    return float(diameter)


def _from_table(table: Table, all_spots: bool) -> Spots:
    layout = recognise(table.path, table.names)
    row_number = np.arange(1, len(table) + 1)
    table, left_out, kept = _on_tissue(table, layout.flags, all_spots)
    xy_px = np.stack(
        [numbers(table, _column(table, name), "level-0 pixels") for name in (layout.x, layout.y)], axis=1
    )
    array_xy = _array_coordinates(table, layout)
    ids = _ids(table, layout, array_xy, row_number[kept])
    require_unique(table, ids)
    shown = f"{table.names[_column(table, layout.x)]}, {table.names[_column(table, layout.y)]}"
    return Spots(
        path=table.path,
        variant=_variant(table, layout),
        id=ids,
        xy_px=xy_px,
        array_xy=array_xy,
        row=table.row,
        table=_frame(table),
        spot_diameter_px=spot_diameter(table.path) if layout is SPACE_RANGER else None,
        coordinates=f"{shown} as x, y in level-0 px{left_out}",
    )


def _from_obs(path: Path, obs: PlacedObs, all_spots: bool) -> Spots:
    table = replace(_of_frame(path, obs.table), unit="row")
    table, left_out, kept = _on_tissue(table, FLAGS, all_spots)
    xy_px = obs.xy_px[kept]
    wrong = ~(np.abs(xy_px) <= LARGEST).all(axis=1)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise SectionError(
            f"{table.at(place)}: obsm['spatial'] is {xy_px[place].tolist()}; give level-0 pixels"
        )
    ids = obs.name[kept]
    require_unique(table, ids)
    return Spots(
        path=path,
        variant="AnnData",
        id=ids,
        xy_px=xy_px,
        array_xy=_array_coordinates(table, SPACE_RANGER),
        row=table.row,
        table=_frame(table),
        spot_diameter_px=obs.spot_diameter_px,
        coordinates=f"obsm['spatial'] as x, y in level-0 px{left_out}",
    )


def _column(table: Table, name: str) -> int:
    """Find a column by its lower-case name; SectionError where two differ from it by case alone."""
    found = [index for index, own in enumerate(table.names) if own.casefold() == name]
    if len(found) > 1:
        raise SectionError(
            f"{table.path}: columns {', '.join(table.names[i] for i in found)} both read as {name}; keep one"
        )
    return found[0]


def _has(table: Table, name: str) -> bool:
    return any(own.casefold() == name for own in table.names)


def _on_tissue(table: Table, names: tuple[str, ...], all_spots: bool) -> tuple[Table, str, NDArray[np.bool_]]:
    """Drop the spots marked as off the tissue; give the rest, a phrase that says so, and which were kept [n]."""
    keep = np.ones(len(table), dtype=np.bool_)
    said = []
    for name in names:
        if all_spots or not _has(table, name):
            continue
        column = _column(table, name)
        marked = flags(table, column)
        if not marked.all():
            said.append(f"{table.names[column]} = 0")
        keep &= marked
    if not keep.any():
        raise SectionError(
            f"{table.path}: no spot is left where {' or '.join(said)} is dropped; ask for all spots"
        )
    phrase = f"; {np.count_nonzero(~keep)} left out for {' or '.join(said)}" if said else ""
    return (table if keep.all() else table.take(keep)), phrase, keep


def _array_coordinates(table: Table, layout: Layout) -> NDArray[np.int64] | None:
    if not all(_has(table, name) for name in layout.array):
        return None
    return np.stack(
        [whole_numbers(table, _column(table, name), "an array coordinate") for name in layout.array], axis=1
    )


def _ids(
    table: Table, layout: Layout, array_xy: NDArray[np.int64] | None, row_number: NDArray[np.int64]
) -> NDArray[np.str_]:
    for name in ID_COLUMNS:
        if _has(table, name) and (name or table.names[0] == ""):
            return identifiers(table, _column(table, name))
    if layout.ids_from_array and array_xy is not None:
        return np.array([f"{x}x{y}" for x, y in array_xy.tolist()], dtype=np.str_)
    return row_number.astype(np.str_)


def _variant(table: Table, layout: Layout) -> str:
    if layout is SPACE_RANGER and table.unit == "row":
        return "Visium HD" if table.path.suffix == ".parquet" else "Space Ranger table"
    return layout.variant if table.has_header else "Space Ranger 1"


def _frame(table: Table) -> pd.DataFrame:
    """Give the table's own columns without an unnamed first one, which is the ids.

    From a text file numbers become numbers, names of spots stay text; columns that came with a type keep it.
    """
    named = {}
    for column, name in enumerate(table.names):
        if name and table.unit != "line":
            named[name] = table.columns[column]
        elif name:
            named[name] = (as_objects if name.casefold() in ID_COLUMNS else typed)(table, column)
    return pd.DataFrame(named, index=pd.RangeIndex(len(table)))


def _of_frame(path: Path, frame: pd.DataFrame) -> Table:
    names = [str(name).strip() for name in frame.columns]
    if len(set(names)) < len(names):
        raise SectionError(f"{path}: a column name stands twice among {', '.join(names)}; keep one")
    if not len(frame):
        raise SectionError(f"{path}: the table has no rows")
    columns: list[NDArray[Any]] = [frame.iloc[:, index].to_numpy() for index in range(len(names))]
    if not isinstance(frame.index, pd.RangeIndex) and "" not in names:
        names, columns = ["", *names], [frame.index.to_numpy(), *columns]
    return Table(path, names, columns, np.arange(1, len(frame) + 1, dtype=np.int64), unit="row")


def _read_parquet(path: Path) -> pd.DataFrame:
    if importlib.util.find_spec("pyarrow") is None:
        raise SectionError(f"{path}: reading Parquet needs pyarrow; install it, or save the table as .csv")
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise SectionError(f"{path}: the Parquet file cannot be read ({error})") from error


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise SectionError(f"{path}: the spots file cannot be read ({error.strerror or error})") from error
