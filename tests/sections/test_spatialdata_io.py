"""Xenium and Visium HD by spatialdata-io, which parses the vendor's files itself, against our readers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from section_folders import XENIUM_PIXEL, visium_hd, xenium

from mclst.sections import Section, find_sections, read_section

pytest.importorskip("spatialdata_io")


def written(path: Path, reader: str, *words: Any, **options: Any) -> Path:
    """A store of what spatialdata-io reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spatialdata_io

        getattr(spatialdata_io, reader)(*words, **options).write(path)
    return path


def read(path: Path, bins: str | None = None) -> Section:
    (source,) = find_sections(path, bins).values()
    return read_section(source)


def same(theirs: Section, ours: Section, scale: float = 1.0, atol: float = 1e-3) -> None:
    rows = [ours.spot.tolist().index(spot) for spot in theirs.spot]
    assert sorted(rows) == list(range(len(ours)))
    assert theirs.genes.tolist() == ours.genes.tolist()
    np.testing.assert_array_equal(theirs.counts.toarray(), ours.counts.toarray()[rows])
    assert theirs.xy_px is not None and ours.xy_px is not None
    np.testing.assert_allclose(theirs.xy_px, ours.xy_px[rows] * scale, atol=atol)


def add_cells_zarr(bundle: Path) -> None:
    """cells.zarr.zip of Xenium Onboard Analysis 3: ids, masks of nuclei and cells, and whose they are."""
    import zarr

    cells = pd.read_parquet(bundle / "cells.parquet").sort_values("cell_id")
    with h5py.File(bundle / "cell_feature_matrix.h5") as file:
        cells = cells.set_index("cell_id").loc[file["matrix/barcodes"][:].astype(str)].reset_index()
    cells.to_parquet(bundle / "cells.parquet", index=False)  # spatialdata-io needs the matrix's order
    letters = "abcdefghijklmnop"  # ids are hexadecimal in these letters
    prefix = [sum(letters.index(c) << 4 * (7 - i) for i, c in enumerate(name[:8])) for name in cells.cell_id]
    masks = np.zeros((1000, 1000), np.uint32)
    for i, (x, y) in enumerate((cells[["x_centroid", "y_centroid"]] / XENIUM_PIXEL).to_numpy().astype(int)):
        masks[y - 3 : y + 4, x - 3 : x + 4] = i + 1
    store = zarr.storage.ZipStore(bundle / "cells.zarr.zip", mode="w")
    group = zarr.open_group(store, mode="w", zarr_format=2)
    group.create_array("cell_id", data=np.array([[number, 1] for number in prefix], np.uint32))
    summary = group.create_array(
        "cell_summary", shape=(len(cells), 1), dtype="f8", attributes={"column_names": ["z_level"]}
    )
    summary[:] = 0
    for number in ("0", "1"):
        group.create_array(f"masks/{number}", data=masks)
        group.create_array(f"polygon_sets/{number}/cell_index", data=np.arange(len(cells), dtype=np.uint32))
    store.close()


def test_a_xenium_bundle_lies_on_its_slide_where_spatialdata_io_lays_it(tmp_path: Path) -> None:
    bundle = xenium(tmp_path / "X1")
    add_cells_zarr(bundle)
    off = dict.fromkeys(
        ("cells_boundaries", "nucleus_boundaries", "nucleus_labels", "morphology_mip", "morphology_focus"),
        False,
    )
    ours = read(bundle)
    for name, circles in (("circles", True), ("labels", False)):
        store = written(
            tmp_path / f"{name}.zarr", "xenium", bundle, cells_as_circles=circles, transcripts=False, **off
        )
        theirs = read(store)
        assert theirs.image is not None and theirs.image.name.endswith("he_image")
        same(theirs, ours, atol=1e-3 if circles else 1.0)  # masks are of whole pixels


def test_bins_and_cells_of_visium_hd_are_those_of_spatialdata_io(tmp_path: Path) -> None:
    outs = visium_hd(tmp_path / "P1") / "outs"
    layout = {"hd_layout_json": json.dumps({"file_format": "1.0"})}
    with h5py.File(outs / "feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps(layout)
    picture = outs / "binned_outputs/square_008um/spatial/tissue_hires_image.png"
    Image.new("RGB", (600, 500)).save(picture)
    store = written(tmp_path / "HD.zarr", "visium_hd", outs, dataset_id="P1", load_segmentations_only=False)
    for bins in ("8", "16", "cells"):
        theirs = read(store, bins)
        assert theirs.image is not None and theirs.image.name == "P1_hires_image"
        same(theirs, read(tmp_path / "P1", bins), scale=0.1)
