"""SpatialData stores (zarr v2 and v3): a table, the shapes it annotates, and the image they lie on.

Layout: scverse/spatialdata, container formats 0.1 and 0.2: `tables/NAME`, `shapes/NAME/shapes.parquet` and
`images/NAME`. The metadata are read as JSON and the table by anndata; spatialdata itself is not needed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.sections.counts import counts_csr, require_unique_spots
from mclst.sections.errors import SectionError
from mclst.sections.formats.h5ad import array_xy_of, other_names
from mclst.sections.formats.ngff import coordinate_systems
from mclst.sections.formats.source import SectionSource, list_folder
from mclst.sections.hdf5 import ALWAYS_ALLOWED_BYTES, MAX_RATIO, name_array
from mclst.sections.location import SlideLocation, local_path
from mclst.sections.section import Section
from mclst.sections.tables.cells import MAX_COORDINATE
from mclst.sections.tables.parquet import read_parquet
from mclst.sections.tables.synonyms import synonyms_of

SUFFIX = ".zarr"
METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")
SIZE = re.compile(r"(\d{3})um", re.ASCII)
GLOBAL = "global"
MAX_METADATA_BYTES = 16 << 20
MAX_FILES = 1_000_000


def find(folder: Path, bins: str | None = None) -> dict[str, SectionSource]:
    """Find the stores of a folder: the folder itself, or those in it, each named after its folder."""
    source = source_of(folder, bins)
    if source is not None:
        return {source.name: source}
    stores = [entry for entry in list_folder(folder) if entry.suffix == SUFFIX and entry.is_dir()]
    sources = [source_of(store, bins) for store in stores]
    return {source.name: source for source in sources if source is not None}


def source_of(store: Path, bins: str | None = None) -> SectionSource | None:
    """Describe a store with a table as a section; None if the folder is none.

    bins: µm in the name of the table to take, such as 8 of square_008um, or "cells".
    """
    if not any((store / name).is_file() for name in METADATA) or not (store / "tables").is_dir():
        return None
    name = store.resolve().name.removesuffix(SUFFIX)
    with _told(store):
        table = _choose_table(store, bins)
        images = store / "images"
        image = _choose_image(store, table) if images.is_dir() else None
    return SectionSource(name, "spatialdata", table, image=image, places=(images,))


def read(source: SectionSource) -> Section:
    """Read a table with the centers of its shapes, in px of the section's image.

    Where the image is not of the store, positions are those of the coordinate system `global`.
    Raises SectionError if the store is damaged, or table, shapes and image do not belong together.
    """
    table, store = source.path, source.path.parent.parent
    with _told(store):
        _check_arrays(table)
        data = _read_table(table)
        obs, var = data["obs"], data["var"]
        spot, genes = name_array(obs.index, table), name_array(var.index, table)
        require_unique_spots(spot, table)
        shapes, column = _shapes_of(store, table)
        to_image = _to_image(store, shapes, source.image)
        centers = _centers(shapes, obs, column) @ to_image[:2, :2].T + to_image[:2, 2]
        return Section(
            name=source.name,
            path=table,
            genes=genes,
            spot=spot,
            counts=counts_csr(data["counts"], table, spot, genes),
            array_xy=array_xy_of(table, obs),
            xy_px=centers,
            image=source.image,
            counts_from=data["counts_from"],
            synonyms=synonyms_of(genes.tolist(), other_names(var)),
        )


@contextmanager
def _told(store: Path) -> Iterator[None]:
    """Make a sentence of whatever damaged metadata and arrays raise."""
    try:
        yield
    except (SectionError, MemoryError):
        raise
    except Exception as error:  # zarr, anndata and damaged JSON raise nearly every type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SectionError(f"{store}: the store cannot be read as SpatialData ({reason})") from error


def _attributes(folder: Path) -> dict[str, Any]:
    """Attributes of a group or an array, of zarr v3 or v2."""
    path = next((folder / name for name in ("zarr.json", ".zattrs") if (folder / name).is_file()), None)
    if path is None:
        raise SectionError(f"{folder}: there are no zarr metadata; copy the store again")
    values = _json(path)
    attributes = values.get("attributes", {}) if path.name == "zarr.json" else values
    return attributes if isinstance(attributes, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise SectionError(f"{path}: the metadata take more than {MAX_METADATA_BYTES >> 20} MB")
    values = json.loads(path.read_bytes())
    if not isinstance(values, dict):
        raise SectionError(f"{path}: the metadata are no object; copy the store again")
    return values


def _choose_table(store: Path, bins: str | None) -> Path:
    """The table that annotates shapes: the only one, or the one whose name holds the µm of `bins`."""
    tables = [entry for entry in list_folder(store / "tables") if entry.is_dir()]
    tables = [table for table in tables if _attributes(table).get("region") is not None]
    if not tables:
        raise SectionError(f"{store}: no table annotates shapes; give a store with a table and its shapes")
    if len(tables) == 1:
        return tables[0]
    size = "8" if bins is None and any(SIZE.search(table.name) for table in tables) else bins or ""
    wanted = f"{int(size):03d}um" if size.isdigit() else size.removesuffix("s")
    matches = [table for table in tables if wanted and wanted in table.name]
    if len(matches) != 1:
        listed = ", ".join(table.name for table in tables)
        raise SectionError(f"{store}: there are tables {listed}; choose one by the µm in its name with --bin")
    return matches[0]


def _shapes_of(store: Path, table: Path) -> tuple[Path, str]:
    """Folder of the shapes that a table annotates, and the column of obs with their index."""
    attributes = _attributes(table)
    regions = attributes["region"] if isinstance(attributes["region"], list) else [attributes["region"]]
    if len(regions) != 1:
        raise SectionError(
            f"{table}: the table annotates {', '.join(map(str, regions))}; write a store for each of them"
        )
    shapes = store / "shapes" / Path(str(regions[0])).name
    if not shapes.is_dir():
        present = list_folder(store / "shapes") if (store / "shapes").is_dir() else []
        listed = ", ".join(entry.name for entry in present if entry.is_dir()) or "none"
        raise SectionError(
            f"{table}: the table annotates {regions[0]}, which is no element of shapes/ ({listed}); set "
            "it to shapes with set_table_annotates_spatialelement of spatialdata"
        )
    return shapes, str(attributes["instance_key"])


def _systems(element: Path) -> dict[str, NDArray[np.float64]]:
    """Coordinate systems of shapes or of an image → matrix [3, 3] for (x, y, 1)."""
    attributes = _attributes(element)
    if element.parent.name == "shapes":
        return coordinate_systems(attributes["coordinateTransformations"], ("x", "y"))
    multiscale = attributes.get("ome", attributes)["multiscales"][0]
    axes = tuple(str(axis["name"]) for axis in multiscale["axes"])
    return coordinate_systems(multiscale["coordinateTransformations"], axes)


def _choose_image(store: Path, table: Path) -> Path | None:
    """The largest RGB image in a coordinate system of the shapes; None if there is none."""
    systems = set(_systems(_shapes_of(store, table)[0]))
    sizes = {}
    for image in list_folder(store / "images"):
        if not image.is_dir():
            continue
        multiscale = _attributes(image).get("ome", _attributes(image))["multiscales"][0]
        axes = [axis["name"] for axis in multiscale["axes"]]
        shape = _array(image / str(multiscale["datasets"][0]["path"]))["shape"]
        if shape[axes.index("c")] in (3, 4) and systems & set(_systems(image)):
            sizes[image] = shape[axes.index("y")] * shape[axes.index("x")]
    return max(sizes, key=lambda image: sizes[image]) if sizes else None


def _to_image(store: Path, shapes: Path, image: SlideLocation | None) -> NDArray[np.float64]:
    """Matrix [3, 3] from the shapes' own coordinates to px of the image."""
    systems = _systems(shapes)
    own = local_path(image)
    if own is None or own.absolute().parent != (store / "images").absolute():
        system = GLOBAL if GLOBAL in systems else next(iter(systems))
        return systems[system]
    of_image = _systems(own)
    shared = [name for name in (GLOBAL, *systems) if name in systems and name in of_image]
    if not shared:
        raise SectionError(f"{image}: the image shares no coordinate system with {shapes.name}; transform it")
    return np.linalg.inv(of_image[shared[0]]) @ systems[shared[0]]


def _centers(shapes: Path, obs: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Centroids of the shapes of each row of obs, in the shapes' coordinates, float64 [n, 2]."""
    if importlib.util.find_spec("shapely") is None:
        raise SectionError(f"{shapes}: reading shapes needs shapely; install mclst[spatialdata]")
    import shapely

    path = shapes / "shapes.parquet"
    if not path.is_file():
        raise SectionError(f"{shapes}: there is no shapes.parquet; write the store with a newer spatialdata")
    table = read_parquet(path)
    geometry = table["geometry"].to_numpy()
    if not all(isinstance(shape, bytes) for shape in geometry):
        raise SectionError(f"{path}: the geometry is not encoded as WKB; write the store with WKB")
    if column not in obs:
        raise SectionError(f"{shapes}: the table has no column {column} with the index of its shapes")
    index = pd.Index([str(name) for name in table.index])
    if not index.is_unique:
        raise SectionError(f"{path}: shape {index[index.duplicated()][0]} is there twice; keep one")
    wanted = [str(name) for name in obs[column]]
    rows = index.get_indexer(pd.Index(wanted))
    if (rows < 0).any():
        raise SectionError(
            f"{path}: {np.count_nonzero(rows < 0)} of {len(wanted)} rows of the table have no shape, the "
            f"first is {wanted[int(np.argmax(rows < 0))]}; the table does not belong to {shapes.name}"
        )
    centers: NDArray[np.float64] = shapely.get_coordinates(shapely.centroid(shapely.from_wkb(geometry)))
    if len(centers) != len(index):
        raise SectionError(f"{path}: a shape is empty; take it out")
    centers = centers[rows]
    if (invalid := ~(np.abs(centers) <= MAX_COORDINATE).all(axis=1)).any():
        row = int(np.argmax(invalid))
        raise SectionError(
            f"{path}: shape {wanted[row]} is at {centers[row].tolist()}; give finite positions"
        )
    return centers


def _read_table(table: Path) -> dict[str, Any]:
    """obs, var, and the counts: layers["counts"] if it is there, else X."""
    import zarr
    from anndata.io import read_elem

    group = zarr.open_group(table, mode="r")
    name = "layers/counts" if "layers/counts" in group else "X"
    if name not in group:
        raise SectionError(f"{table}: there is neither layers['counts'] nor X; give a table with counts")
    return {
        "obs": read_elem(group["obs"]),
        "var": read_elem(group["var"]),
        "counts": read_elem(group[name]),
        "counts_from": "X" if name == "X" else "layers['counts']",
    }


def _array(folder: Path) -> dict[str, Any]:
    """Metadata of an array, of zarr v3 or v2."""
    return _json(next(folder / name for name in ("zarr.json", ".zarray") if (folder / name).is_file()))


def _check_arrays(table: Path) -> None:
    """Refuse links, and arrays that declare more than files of this size can hold."""
    stored = declared = files = 0
    for place, folders, names in os.walk(table):
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink():
                raise SectionError(f"{path} is a link; copy what it leads to")
            stored += path.stat().st_size if path.is_file() else 0
        files += len(names)
        if files > MAX_FILES:
            raise SectionError(f"{table}: the table has more than {MAX_FILES:,} files")
        for name in {"zarr.json", ".zarray"} & set(names):
            values = _json(Path(place, name))
            if "shape" in values:
                declared += math.prod(int(size) for size in values["shape"]) * _item_bytes(values)
    if declared > ALWAYS_ALLOWED_BYTES + MAX_RATIO * stored:
        raise SectionError(f"{table}: the table declares {declared:,} bytes in files of {stored:,}")


def _item_bytes(array: dict[str, Any]) -> int:
    digits = re.search(r"(\d+)$", str(array.get("dtype", array.get("data_type"))))
    if digits is None:
        return 8
    size = int(digits[1])
    return max(1, size if "dtype" in array else size // 8)
