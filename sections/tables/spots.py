"""Read spots: Space Ranger, legacy ST, Seurat, QuPath, pixels or µm, Parquet, AnnData, GeoJSON cells.

The format is detected from the content, never from the file name.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mclst.sections.columns import Columns
from mclst.sections.errors import SectionError, UnknownColumns, UnknownScale
from mclst.sections.section import Spots
from mclst.sections.tables.cells import (
    MAX_COORDINATE,
    as_strings,
    flags,
    identifiers,
    infer_type,
    integers,
    numbers,
    require_unique,
)
from mclst.sections.tables.delimited import Table, read_table
from mclst.sections.tables.geojson import is_geojson, read_cells
from mclst.sections.tables.layouts import (
    BARCODE,
    ID_COLUMNS,
    SEURAT_5_COLUMNS,
    SEURAT_COORDINATES,
    SPACE_RANGER,
    Layout,
    detect_layout,
    space_ranger_1,
)

if TYPE_CHECKING:
    import anndata as ad
    import pandas as pd

    from mclst.sections.tables.h5ad_obs import ObsTable

POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
FLAGS = ("in_tissue", "selected")


def read_spots(
    source: Path | str | pd.DataFrame | ad.AnnData,
    *,
    all_spots: bool = False,
    mpp: float | tuple[float, float] | None = None,
) -> Spots:
    """Read a table of spots, in the table's order.

    Parameters
    ----------
    source : Path, str, DataFrame or AnnData
        A text table (tab, semicolon or comma), .parquet, .h5ad (obsm["spatial"], or columns of obs), GeoJSON
        cells, a Space Ranger folder (`outs/` or `spatial/`), or such a table in memory.
    all_spots : bool
        Keep spots that the table marks as off the tissue (in_tissue or selected = 0).
    mpp : float or (float, float), optional
        µm per level-0 px of the slide, of each axis if there are two; for tables in µm.

    Returns
    -------
    Spots

    Raises
    ------
    SectionError
        If the format is unknown, a kept spot's coordinate is not a finite number, a spot appears twice, or no
        spot is left; the message names file, line and column. UnknownScale if the table is in µm and `mpp`
        is None.
    """
    if not isinstance(source, str | os.PathLike):
        return _from_memory(source, all_spots, mpp)
    path = Path(source)
    if os.path.isdir(path):  # Path.is_dir raises where the name is too long or a folder is closed
        path = positions_file(path)
    magic = _first_bytes(path)
    if magic.startswith(b"\x89HDF"):
        from mclst.sections.tables.h5ad_obs import read_obs_table

        return _from_obs(path, read_obs_table(path), all_spots, mpp)
    if magic.startswith(b"PAR1"):
        from mclst.sections.tables.parquet import read_parquet

        return _from_table(_table_of_frame(path, read_parquet(path)), all_spots, mpp)
    if is_geojson(magic):
        return read_cells(path)
    return _from_table(read_table(path, space_ranger_1), all_spots, mpp)


def positions_file(folder: Path) -> Path:
    """Find the positions file of a Space Ranger folder (`outs/`, `spatial/` or the one that holds `outs/`).

    Raises SectionError if there is none, or several.
    """
    for parent in (folder / "spatial", folder / "outs" / "spatial", folder):
        matches = [parent / name for name in POSITIONS if (parent / name).is_file()]
        if len(matches) > 1:
            raise SectionError(f"{matches[0]} and {matches[1]} both are positions files; name the one to use")
        if matches:
            return matches[0]
    raise SectionError(
        f"{folder}: no {', '.join(POSITIONS)} in the folder or its spatial/; name the spots file"
    )


def spot_diameter(positions: Path) -> float | None:
    """Read spot_diameter_fullres (level-0 px) from the scalefactors of a positions file; None if absent."""
    path = positions.with_name("scalefactors_json.json")
    if not path.is_file():
        return None
    try:
        factors = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SectionError(
            f"{path}: the scalefactors are not JSON ({error}); copy them from Space Ranger again"
        ) from error
    diameter = factors.get("spot_diameter_fullres") if isinstance(factors, dict) else None
    if diameter is None:
        return None
    if not isinstance(diameter, (int, float)) or not math.isfinite(diameter) or diameter <= 0:
        raise SectionError(f"{path}: spot_diameter_fullres is {diameter!r}; give a number of pixels above 0")
    return float(diameter)


def _from_memory(
    source: pd.DataFrame | ad.AnnData, all_spots: bool, mpp: float | tuple[float, float] | None
) -> Spots:
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return _from_table(_table_of_frame(Path("DataFrame"), source), all_spots, mpp)
    from mclst.sections.tables.h5ad_obs import obs_table

    return _from_obs(Path("AnnData"), obs_table(source), all_spots, mpp)


def _from_table(
    table: Table,
    all_spots: bool,
    mpp: float | tuple[float, float] | None = None,
    names: NDArray[np.str_] | None = None,
) -> Spots:
    """names: the spots' names [n], else taken from the table."""
    layout = detect_layout(table.path, table.names)
    if layout.um and mpp is None:
        raise UnknownScale(
            f"{table.path} is in µm, and the slide does not say how large its pixels are; give --mpp, the µm "
            "per pixel of the slide"
        )
    _require_one_image(table, layout)
    _require_known_axes(table)
    row_number = np.arange(1, len(table) + 1)
    table, note, kept = _on_tissue(table, layout.flags, all_spots)
    xy_px = np.stack(
        [
            numbers(table, _column(table, name), "µm" if layout.um else "level-0 pixels")
            for name in (layout.x, layout.y)
        ],
        axis=1,
    )
    unit = "level-0 px"
    if layout.um and mpp is not None:
        scale = " x ".join(dict.fromkeys(f"{axis:.4g}" for axis in np.atleast_1d(mpp).tolist()))
        xy_px, unit = xy_px / mpp, f"µm, by {scale} µm/px of the slide"
    array_xy = _array_coordinates(table, layout)
    ids = _ids(table, layout, array_xy, row_number[kept]) if names is None else names[kept]
    require_unique(table, ids)
    shown = f"{table.names[_column(table, layout.x)]}, {table.names[_column(table, layout.y)]}"
    return Spots(
        path=table.path,
        variant=_variant(table, layout),
        id=ids,
        xy_px=xy_px,
        array_xy=array_xy,
        row=table.row,
        columns=_typed(table),
        spot_diameter_px=spot_diameter(table.path) if layout is SPACE_RANGER else None,
        coordinates=f"{shown} as x, y in {unit}{note}",
    )


def _require_one_image(table: Table, layout: Layout) -> None:
    """Refuse measurements of several images, which QuPath exports into one table."""
    if not layout.variant.startswith("QuPath") or not _has(table, "image"):
        return
    column = _column(table, "image")
    first = table.texts(column, slice(0, 1))[0]
    for rows in table.chunks():
        other = next((text for text in table.texts(column, rows) if text != first), None)
        if other is not None:
            raise SectionError(
                f"{table.path}: there are measurements of {first} and of {other}; export one image by itself"
            )


def _require_known_axes(table: Table) -> None:
    """Refuse what Seurat 5 exports of Visium: which of x and y runs across depends on its version."""
    if {name for name in table.names if name} != SEURAT_5_COLUMNS:
        return
    first = table.texts(table.names.index("cell"), slice(0, 1))[0]
    if BARCODE.search(first):
        raise SectionError(
            f"{table.path}: columns x, y, cell with 10x barcodes are Seurat 5's, whose x is the row of the "
            "image in some versions and the column in others; name the column that runs across imagecol, the "
            "other imagerow"
        )


def _from_obs(path: Path, obs: ObsTable, all_spots: bool, mpp: float | tuple[float, float] | None) -> Spots:
    if obs.xy_px is None:
        table = _table_of_frame(path, obs.table.reset_index(drop=True))
        try:
            spots = _from_table(table, all_spots, mpp, obs.name)
        except UnknownColumns as error:
            raise SectionError(f"{error} (there is no obsm['spatial'] either)") from error
        # Without an array, these may be px of a small picture, which the slide tells.
        of_seurat = spots.variant == SEURAT_COORDINATES and spots.array_xy is None
        variant = SEURAT_COORDINATES if of_seurat else "AnnData"
        return replace(spots, variant=variant, spot_diameter_px=obs.spot_diameter_px)
    table = replace(_table_of_frame(path, obs.table), unit="row")
    table, note, kept = _on_tissue(table, FLAGS, all_spots)
    xy_px = obs.xy_px[kept]
    invalid = ~(np.abs(xy_px) <= MAX_COORDINATE).all(axis=1)
    if invalid.any():
        row = int(np.argmax(invalid))
        raise SectionError(
            f"{table.location(row)}: obsm['spatial'] is {xy_px[row].tolist()}; give level-0 pixels"
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
        columns=_typed(table),
        spot_diameter_px=obs.spot_diameter_px,
        coordinates=f"obsm['spatial'] as x, y in level-0 px{note}",
    )


def _column(table: Table, name: str) -> int:
    """Index of a column by its lower-case name; SectionError if several columns differ only by case."""
    matches = [index for index, column in enumerate(table.names) if column.casefold() == name]
    if len(matches) > 1:
        raise SectionError(
            f"{table.path}: columns {', '.join(table.names[i] for i in matches)} both read as {name}; keep "
            "one"
        )
    return matches[0]


def _has(table: Table, name: str) -> bool:
    return any(column.casefold() == name for column in table.names)


def _on_tissue(table: Table, names: tuple[str, ...], all_spots: bool) -> tuple[Table, str, NDArray[np.bool_]]:
    """Drop off-tissue spots; returns the rest, a note for the summary, and the mask of kept spots [n]."""
    keep = np.ones(len(table), dtype=np.bool_)
    reasons = []
    for name in names:
        if all_spots or not _has(table, name):
            continue
        column = _column(table, name)
        on_tissue = flags(table, column)
        if not on_tissue.all():
            reasons.append(f"{table.names[column]} = 0")
        keep &= on_tissue
    if not keep.any():
        raise SectionError(
            f"{table.path}: no spot is left without those with {' or '.join(reasons)}; ask for all spots"
        )
    note = f"; {np.count_nonzero(~keep)} left out for {' or '.join(reasons)}" if reasons else ""
    return (table if keep.all() else table.take(keep)), note, keep


def _array_coordinates(table: Table, layout: Layout) -> NDArray[np.int64] | None:
    if not all(_has(table, name) for name in layout.array):
        return None
    return np.stack(
        [integers(table, _column(table, name), "an array coordinate") for name in layout.array], axis=1
    )


def _ids(
    table: Table, layout: Layout, array_xy: NDArray[np.int64] | None, row_number: NDArray[np.int64]
) -> NDArray[np.str_]:
    for name in layout.ids:
        if _has(table, name) and (name or table.names[0] == ""):
            return identifiers(table, _column(table, name))
    if layout.ids_from_array and array_xy is not None:
        return np.array([f"{x}x{y}" for x, y in array_xy.tolist()], dtype=np.str_)
    return row_number.astype(np.str_)


def _variant(table: Table, layout: Layout) -> str:
    if layout is SPACE_RANGER and table.unit == "row":
        return "Visium HD" if table.path.suffix == ".parquet" else "Space Ranger table"
    return layout.variant if table.has_header else "Space Ranger 1"


def _typed(table: Table) -> Columns:
    """Columns of the table without an unnamed first one, which holds the ids.

    Columns of a text file get their natural type, except spot names; typed columns keep their type.
    """
    columns: dict[str, Any] = {}
    for column, name in enumerate(table.names):
        if name and table.unit != "line":
            columns[name] = table.columns[column]
        elif name:
            read = as_strings if name.casefold() in ID_COLUMNS else infer_type
            columns[name] = partial(read, table, column)
    return Columns(range(len(table)), columns)


def _table_of_frame(path: Path, frame: pd.DataFrame) -> Table:
    import pandas as pd

    names = [str(name).strip() for name in frame.columns]
    if len(set(names)) < len(names):
        raise SectionError(f"{path}: a column name appears twice among {', '.join(names)}; keep one")
    if not len(frame):
        raise SectionError(f"{path}: the table has no rows")
    columns = [_texts(frame.iloc[:, index].to_numpy()) for index in range(len(names))]
    if not isinstance(frame.index, pd.RangeIndex) and "" not in names:
        names, columns = ["", *names], [_texts(frame.index.to_numpy()), *columns]
    kept = {name: column for name, column in zip(names, columns, strict=True) if column is not None}
    rows = np.arange(1, len(frame) + 1, dtype=np.int64)
    return Table(path, list(kept), list(kept.values()), rows, unit="row")


def _texts(values: NDArray[Any]) -> NDArray[Any] | None:
    """A column [n] with bytes as text, as Xenium's first versions have ids; None for those of a geometry."""
    if values.dtype.kind != "O":
        return values
    import pandas as pd

    if pd.api.types.infer_dtype(values, skipna=True) not in ("bytes", "mixed"):
        return values
    try:
        cells = [cell.decode() if isinstance(cell, bytes) else cell for cell in values]
    except UnicodeDecodeError:
        return None
    result = np.empty(len(cells), dtype=object)
    result[:] = cells
    return result


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise SectionError(f"{path}: the spots file cannot be read ({error.strerror or error})") from error
