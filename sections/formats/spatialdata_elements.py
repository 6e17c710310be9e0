"""Elements of a SpatialData store that a table annotates: where its shapes, labels or points lie.

Layout: scverse/spatialdata 0.1 to 0.8, `_io/io_shapes.py`, `io_raster.py` and `io_points.py`. A label's place
is the mean of its pixels' middles, as spatialdata's `get_centroids` has it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.formats.ngff import coordinate_systems
from mclst.sections.formats.source import list_folder
from mclst.sections.tables.cells import MAX_COORDINATE
from mclst.sections.tables.parquet import check_parquet
from mclst.sections.zarr_arrays import check_arrays, read_json

KINDS = ("shapes", "labels", "points")
BLOCK_PX = 1 << 24
"""Most pixels of labels that are held; a larger chunk is refused."""


def element_of(store: Path, name: str) -> Path:
    """The element of a name; SectionError, with what there is, if there is none."""
    for kind in KINDS:
        element = store / kind / Path(name).name
        if element.is_dir():
            return element
    present = [
        f"{kind}/{entry.name}"
        for kind in KINDS
        if (store / kind).is_dir()
        for entry in list_folder(store / kind)
        if entry.is_dir()
    ]
    raise SectionError(
        f"{store}: a table annotates {name}, which is no element of shapes, labels or points "
        f"({', '.join(present[:12]) or 'none'}); set it with spatialdata's set_table_annotates_spatialelement"
    )


def systems_of(element: Path) -> dict[str, NDArray[np.float64]]:
    """Coordinate systems of an element → matrix [3, 3] for its own (x, y, 1): px, or as the shapes are."""
    attributes = attributes_of(element)
    if element.parent.name in ("shapes", "points"):
        return coordinate_systems(attributes["coordinateTransformations"], ("x", "y"))
    multiscale = multiscale_of(element)
    axes = tuple(str(axis["name"]) for axis in multiscale["axes"])
    return coordinate_systems(multiscale["coordinateTransformations"], axes)


def centers_of(element: Path, wanted: list[str]) -> NDArray[np.float64]:
    """Middles (x, y) of the named instances in the element's own coordinates, float64 [n, 2].

    Raises SectionError if an instance is missing, there twice, empty or at no finite place.
    """
    if element.parent.name == "labels":
        centers = _label_centers(element, wanted)
    else:
        index, all_centers = _shapes(element) if element.parent.name == "shapes" else _points(element)
        if not index.is_unique:
            raise SectionError(f"{element}: {index[index.duplicated()][0]} is there twice; keep one")
        rows = index.get_indexer(pd.Index(wanted))
        _require(element, rows >= 0, wanted)
        centers = all_centers[rows]
    if (invalid := ~(np.abs(centers) <= MAX_COORDINATE).all(axis=1)).any():
        row = int(np.argmax(invalid))
        raise SectionError(
            f"{element}: {wanted[row]} is at {centers[row].tolist()} or empty; give finite positions"
        )
    return centers


def _require(element: Path, known: NDArray[np.bool_], wanted: list[str]) -> None:
    if not known.all():
        raise SectionError(
            f"{element}: {np.count_nonzero(~known)} of {len(wanted)} rows of the table have no place in it, "
            f"the first is {wanted[int(np.argmin(known))]}; the table does not belong to {element.name}"
        )


def _shapes(element: Path) -> tuple[pd.Index, NDArray[np.float64]]:
    if importlib.util.find_spec("geopandas") is None:
        raise SectionError(f"{element}: reading shapes needs geopandas; install mclst[spatialdata]")
    import geopandas
    import shapely

    path = element / "shapes.parquet"
    if path.is_file():
        check_parquet(path)
        table = geopandas.read_parquet(path)
        index, geometry = table.index, table.geometry.to_numpy()
    else:
        index, geometry = _ragged_shapes(element)
    xy = np.full((len(geometry), 2), np.nan)  # an empty shape has no middle
    middles, row = shapely.get_coordinates(shapely.centroid(geometry), return_index=True)
    xy[row] = middles
    return pd.Index([str(name) for name in index]), xy


def _ragged_shapes(element: Path) -> tuple[Any, Any]:
    """Shapes of container format 0.1: arrays coords, offset0, …, Index."""
    import shapely
    import zarr

    check_arrays(element)
    group: Any = zarr.open_group(element, mode="r", use_consolidated=False)
    kind = shapely.GeometryType(attributes_of(element)["spatialdata_attrs"]["geos"]["type"])
    offsets = sorted(
        (name for name in group if re.fullmatch(r"offset\d", name)), key=lambda name: int(name[6:])
    )
    parts = tuple(np.asarray(group[name][:]).ravel() for name in offsets)
    # Between others, shapely would read beyond its memory.
    if any(p.dtype.kind not in "iu" or (p[:1] < 0).any() or (p[1:] < p[:-1]).any() for p in parts):
        raise SectionError(f"{element}: the offsets of its shapes do not follow one another; copy it again")
    geometry = shapely.from_ragged_array(kind, np.asarray(group["coords"][:]), parts or None)
    return group["Index"][:], geometry


def _points(element: Path) -> tuple[pd.Index, NDArray[np.float64]]:
    path = element / "points.parquet"
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    names, parts = [], []
    for file in files:
        check_parquet(file)
        table = pd.read_parquet(file, columns=["x", "y"], engine="pyarrow")
        names.append(table.index)
        parts.append(table.to_numpy(np.float64))
    index = names[0].append(names[1:]) if names else pd.Index([])
    return pd.Index([str(name) for name in index]), np.concatenate([np.empty((0, 2)), *parts])


def _label_centers(element: Path, wanted: list[str]) -> NDArray[np.float64]:
    """Mean of each label's pixels, in blocks: runs of one label along x, then sums per label."""
    import zarr

    path = str(multiscale_of(element)["datasets"][0]["path"])
    level = element / Path(path).name
    check_arrays(level)
    labels: Any = zarr.open_array(level, mode="r")
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise SectionError(
            f"{element}: the labels are {labels.dtype} {labels.shape}; give whole numbers [y, x]"
        )
    try:
        numbers = np.array([int(name) for name in wanted], np.int64)
    except ValueError as error:
        raise SectionError(f"{element}: the table names a label that is no number ({error})") from error
    ids, back = np.unique(numbers, return_inverse=True)
    sums = np.zeros((len(ids), 3))  # pixels, x, y
    for y, x, block in _blocks(element, labels):
        _add_runs(sums, ids, block, y, x)
    seen = sums[:, 0] > 0
    _require(element, seen[back], wanted)
    return np.asarray(sums[:, 1:] / sums[:, :1])[back]


def _blocks(element: Path, labels: Any) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Blocks of whole chunks with the place of their first pixel."""
    height, width = getattr(labels, "shards", None) or labels.chunks
    if height * width > BLOCK_PX:
        raise SectionError(
            f"{element}: a chunk has {height} x {width} px; write the store with smaller chunks"
        )
    wide = width * max(1, min(-(-labels.shape[1] // width), BLOCK_PX // (height * width)))
    for y in range(0, labels.shape[0], height):
        for x in range(0, labels.shape[1], wide):
            yield y, x, np.asarray(labels[y : y + height, x : x + wide])


def _add_runs(sums: NDArray[np.float64], ids: NDArray[np.int64], block: Any, y: int, x: int) -> None:
    """Add a block's pixels to the sums [n, 3] of the labels `ids`, which are sorted."""
    height, width = block.shape
    begins = np.ones((height, width), np.bool_)
    np.not_equal(block[:, 1:], block[:, :-1], out=begins[:, 1:])
    start = np.flatnonzero(begins)
    length = np.diff(start, append=height * width)
    label = block.ravel()[start].astype(np.int64)
    row = np.minimum(np.searchsorted(ids, label), len(ids) - 1)
    kept = ids[row] == label
    row, start, length = row[kept], start[kept], length[kept]
    first = x + start % width
    for column, values in enumerate(
        (length, length * (first + length / 2), length * (y + start // width + 0.5))
    ):
        sums[:, column] += np.bincount(row, weights=values, minlength=len(ids))


def attributes_of(folder: Path) -> dict[str, Any]:
    """Attributes of a group or an array, of zarr v3 or v2."""
    path = next((folder / name for name in ("zarr.json", ".zattrs") if (folder / name).is_file()), None)
    if path is None:
        raise SectionError(f"{folder}: there are no zarr metadata; copy the store again")
    values = read_json(path)
    attributes = values.get("attributes", {}) if path.name == "zarr.json" else values
    return attributes if isinstance(attributes, dict) else {}


def multiscale_of(raster: Path) -> dict[str, Any]:
    """OME-Zarr metadata of an image or of labels."""
    attributes = attributes_of(raster)
    multiscale: dict[str, Any] = attributes.get("ome", attributes)["multiscales"][0]
    return multiscale


def array_metadata(folder: Path) -> dict[str, Any]:
    """Metadata of an array, of zarr v3 or v2."""
    return read_json(next(folder / name for name in ("zarr.json", ".zarray") if (folder / name).is_file()))
