"""SpatialData stores (zarr v2 and v3): a table, the elements it annotates, and the image they lie on.

Layout: scverse/spatialdata, container formats 0.1 and 0.2: `tables/NAME`, `shapes/NAME`, `labels/NAME`,
`points/NAME` and `images/NAME`. The metadata are read as JSON and the table by anndata; spatialdata itself is
not needed. A table of several elements, such as one per sample, is as many sections.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.sections.counts import counts_csr, require_unique_spots
from mclst.sections.errors import SectionError, pass_out_of_memory
from mclst.sections.formats.h5ad import array_xy_of, other_names
from mclst.sections.formats.source import SectionSource, list_folder
from mclst.sections.formats.spatialdata_elements import (
    array_metadata,
    attributes_of,
    centers_of,
    element_of,
    multiscale_of,
    systems_of,
)
from mclst.sections.hdf5 import check_sparse, name_array
from mclst.sections.location import SlideLocation, local_path
from mclst.sections.section import Section
from mclst.sections.tables.synonyms import synonyms_of
from mclst.sections.zarr_arrays import check_arrays

SUFFIX = ".zarr"
METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")
SIZE = re.compile(r"(\d{3})um", re.ASCII)
DIGITS = re.compile(r"\d{1,3}", re.ASCII)
GLOBAL = "global"


def find(folder: Path, bins: str | None = None) -> dict[str, SectionSource]:
    """Find the sections of a store, or of the stores in a folder.

    A section has its store's name, or STORE_ELEMENT where the store's table annotates several.
    """
    if is_store(folder):
        return {source.name: source for source in _sources(folder, bins)}
    stores = [entry for entry in list_folder(folder) if entry.suffix == SUFFIX and is_store(entry)]
    return {source.name: source for store in stores for source in _sources(store, bins)}


def is_store(folder: Path) -> bool:
    """Whether a folder is a store with tables."""
    return any((folder / name).is_file() for name in METADATA) and (folder / "tables").is_dir()


def source_of(store: Path, bins: str | None = None) -> SectionSource | None:
    """Describe a store of one section; None if the folder is none, SectionError if it has several.

    bins: µm in the name of the table to take, such as 8 of square_008um, or "cells".
    """
    if not is_store(store):
        return None
    sources = _sources(store, bins)
    if len(sources) > 1:
        listed = ", ".join(source.region for source in sources)
        raise SectionError(f"{store}: the table annotates {listed}; give a store of one of them")
    return sources[0]


def _sources(store: Path, bins: str | None) -> list[SectionSource]:
    name = store.resolve().name.removesuffix(SUFFIX)
    with _told(store):
        table = _choose_table(store, bins)
        given = attributes_of(table)["region"]
        regions = [str(region) for region in (given if isinstance(given, list) else [given])]
        images = store / "images"
        return [
            SectionSource(
                name if len(regions) == 1 else f"{name}_{region}",
                "spatialdata",
                table,
                image=_choose_image(store, element_of(store, region)) if images.is_dir() else None,
                places=(images,),
                region=region,
            )
            for region in regions
        ]


def read(source: SectionSource) -> Section:
    """Read a table with the middles of its shapes, labels or points, in px of the section's image.

    Where the image is not of the store, positions are those of the coordinate system `global`,
    else those that are as stored.
    Raises SectionError if the store is damaged, or table, elements and image do not belong together.
    """
    table, store = source.path, source.path.parent.parent
    with _told(store):
        check_arrays(table)
        data = _read_table(table, source.region)
        obs, var = data["obs"], data["var"]
        spot, genes = name_array(obs.index, table), name_array(var.index, table)
        require_unique_spots(spot, table)
        element, column = element_of(store, source.region), str(attributes_of(table)["instance_key"])
        if column not in obs:
            raise SectionError(
                f"{table}: there is no column {column} with the instances of {element.name}; write it again"
            )
        to_image = _to_image(store, element, source.image)
        centers = centers_of(element, [str(name) for name in obs[column]])
        return Section(
            name=source.name,
            path=table,
            genes=genes,
            spot=spot,
            counts=counts_csr(data["counts"], table, spot, genes),
            array_xy=array_xy_of(table, obs),
            xy_px=centers @ to_image[:2, :2].T + to_image[:2, 2],
            image=source.image,
            counts_from=data["counts_from"],
            synonyms=synonyms_of(genes.tolist(), other_names(var)),
        )


@contextmanager
def _told(store: Path) -> Iterator[None]:
    """Make a sentence of whatever damaged metadata and arrays raise."""
    try:
        yield
    except SectionError:
        raise
    except Exception as error:  # zarr, anndata and damaged JSON raise nearly every type
        pass_out_of_memory(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SectionError(f"{store}: the store cannot be read as SpatialData ({reason})") from error


def _choose_table(store: Path, bins: str | None) -> Path:
    """The table that annotates elements: the only one, or the one whose name holds the µm of `bins`."""
    tables = [entry for entry in list_folder(store / "tables") if entry.is_dir()]
    tables = [table for table in tables if attributes_of(table).get("region") is not None]
    if not tables:
        raise SectionError(
            f"{store}: no table annotates shapes, labels or points; give a store with such a table"
        )
    if len(tables) == 1:
        return tables[0]
    size = "8" if bins is None and any(SIZE.search(table.name) for table in tables) else bins or ""
    wanted = f"{int(size):03d}um" if DIGITS.fullmatch(size) else size.removesuffix("s")
    matches = [table for table in tables if wanted and wanted in table.name]
    if len(matches) != 1:
        listed = ", ".join(table.name for table in tables)
        raise SectionError(f"{store}: there are tables {listed}; choose one by the µm in its name with --bin")
    return matches[0]


def _choose_image(store: Path, element: Path) -> Path | None:
    """The largest image of three channels in a coordinate system of the element; None if there is none.

    One with a fourth, as RGBA has, is no slide (`runtime/slide/ome_zarr.py`).
    """
    systems = set(systems_of(element))
    sizes = {}
    for image in list_folder(store / "images"):
        if not image.is_dir():
            continue
        multiscale = multiscale_of(image)
        axes = [axis["name"] for axis in multiscale["axes"]]
        shape = array_metadata(image / str(multiscale["datasets"][0]["path"]))["shape"]
        if shape[axes.index("c")] == 3 and systems & set(systems_of(image)):
            sizes[image] = shape[axes.index("y")] * shape[axes.index("x")]
    return max(sizes, key=lambda image: sizes[image]) if sizes else None


def _to_image(store: Path, element: Path, image: SlideLocation | None) -> NDArray[np.float64]:
    """Matrix [3, 3] from the element's own coordinates to px of the image."""
    systems = systems_of(element)
    own = local_path(image)
    if own is None or own.parent.resolve() != (store / "images").resolve():
        # Without it, spatialdata-io's Visium is in full-resolution pixels as it is.
        as_it_is = next((name for name in systems if np.array_equal(systems[name], np.eye(3))), None)
        return systems[GLOBAL] if GLOBAL in systems else systems[as_it_is or next(iter(systems))]
    of_image = systems_of(own)
    shared = [name for name in (GLOBAL, *systems) if name in systems and name in of_image]
    if not shared:
        raise SectionError(f"{own}: the image shares no coordinate system with {element.name}; transform it")
    return np.linalg.inv(of_image[shared[0]]) @ systems[shared[0]]


def _require_chunks(table: Path, counts: Any) -> None:
    """Refuse a sparse matrix that lacks a chunk: zarr would read zeros, for values or for genes."""
    for name in ("data", "indices"):
        if name == "indices" and 1 in counts.attrs.get("shape", ()):
            continue  # of a single gene, all indices are 0, and zarr need not store them
        array = counts[name]
        if missing := array.nchunks - array.nchunks_initialized:
            raise SectionError(
                f"{table}: {missing} of {array.nchunks} chunks of {counts.basename}/{name} are missing; copy "
                "the store again"
            )


def _read_table(table: Path, region: str) -> dict[str, Any]:
    """obs, var, and the counts of a region's rows: layers["counts"] if it is there, else X."""
    import zarr
    from anndata.io import read_elem

    # Consolidated metadata would replace those that were checked.
    group = zarr.open_group(table, mode="r", use_consolidated=False)
    name = "layers/counts" if "layers/counts" in group else "X"
    if name not in group:
        raise SectionError(f"{table}: there is neither layers['counts'] nor X; give a table with counts")
    if isinstance(sparse := group[name], zarr.Group):
        _require_chunks(table, sparse)
    obs, counts = read_elem(group["obs"]), read_elem(group[name])
    check_sparse(counts)
    key = str(attributes_of(table).get("region_key", ""))
    if key in obs:
        rows = np.flatnonzero(obs[key].astype(str) == region)
        if len(rows) < len(obs):
            obs, counts = obs.iloc[rows], counts[rows]
    return {
        "obs": obs,
        "var": read_elem(group["var"]),
        "counts": counts,
        "counts_from": "X" if name == "X" else "layers['counts']",
    }
