"""Folders of measured sections, laid out as their vendors publish them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

BARCODES = [f"{code}-1" for code in ("AAACAAGTATCTCCCA", "AAACAATCTACTAGCA", "AAACACCAATAACTGC")]


def space_ranger(folder: Path, scale: object = 0.2) -> Path:
    """Space Ranger 2's outs/: matrix, positions with a header, scalefactors, the two pictures."""
    spatial = folder / "outs" / "spatial"
    spatial.mkdir(parents=True)
    with h5py.File(folder / "outs" / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(BARCODES, "S18")
        matrix["data"], matrix["indices"] = np.array([1, 2, 3], np.int32), np.array([0, 1, 0], np.int64)
        matrix["indptr"], matrix["shape"] = np.array([0, 1, 2, 3], np.int64), np.array([2, 3], np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array(["ENSG00000141510", "ENSG00000136997"], "S16")
        features["name"] = np.array(["TP53", "MYC"], "S8")
        features["feature_type"] = np.array(["Gene Expression"] * 2, "S16")
    rows = [f"{name},1,{i},{i},{100 * i + 50},{200 * i + 25}" for i, name in enumerate(BARCODES)]
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
    (spatial / "tissue_positions.csv").write_text("\n".join([header, *rows]) + "\n")
    factors = {"tissue_hires_scalef": scale, "spot_diameter_fullres": 65.0}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    Image.new("RGB", (120, 90), (200, 120, 170)).save(spatial / "tissue_hires_image.png")
    return folder


def visium_hd(folder: Path, sizes: tuple[int, ...] = (8, 16), mpp: float = 0.5) -> Path:
    """Space Ranger 4's outs/ of Visium HD: binned_outputs by size, and segmented_outputs of three cells.

    A bin's center is at (column + ½, row + ½) bins, turned by 10° about (4000, 3000) px.
    """
    rng = np.random.default_rng(2)
    fine = rng.poisson(0.4, (24, 32, 3))  # counts per 8 µm bin
    for size in sizes:
        side = size // 8
        counts = fine.reshape(24 // side, side, 32 // side, side, 3).sum(axis=(1, 3)).reshape(-1, 3)
        rows, columns = (axis.ravel() for axis in np.indices((24 // side, 32 // side)))
        places = zip(rows, columns, strict=True)
        names = [f"s_{size:03d}um_{row:05d}_{column:05d}-1" for row, column in places]
        square = folder / "outs" / "binned_outputs" / f"square_{size:03d}um"
        (square / "spatial").mkdir(parents=True)
        x, y = hd_center(rows, columns, size, mpp)
        frame = pd.DataFrame(
            {"barcode": names, "in_tissue": 1, "array_row": rows, "array_col": columns,
             "pxl_row_in_fullres": y, "pxl_col_in_fullres": x}
        )  # fmt: skip
        frame.to_parquet(square / "spatial" / "tissue_positions.parquet", index=False)
        factors = {"bin_size_um": float(size), "microns_per_pixel": mpp, "spot_diameter_fullres": size / mpp}
        (square / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        kept = counts.sum(axis=1) > 0  # Space Ranger filters bins without counts
        write_matrix(square / "filtered_feature_bc_matrix.h5", np.array(names)[kept], counts[kept])
    segmented = folder / "outs" / "segmented_outputs"
    segmented.mkdir(parents=True)
    cells = [(1, 900.0, 800.0), (2, 950.0, 860.0), (12, 1200.0, 400.0)]
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x - 4, y], [x, y - 4], [x + 4, y], [x, y + 4], [x - 4, y]]],
            },
            "properties": {"cell_id": cell},
        }
        for cell, x, y in cells
    ]
    outlines = {"type": "FeatureCollection", "features": features}
    (segmented / "cell_segmentations.geojson").write_text(json.dumps(outlines))
    barcodes = np.array([f"cellid_{cell:09d}-1" for cell, _, _ in reversed(cells)])
    write_matrix(segmented / "filtered_feature_cell_matrix.h5", barcodes, np.arange(1, 10).reshape(3, 3))
    return folder


def hd_center(rows: Array, columns: Array, size_um: float, mpp: float) -> tuple[Array, Array]:
    u, v = (columns + 0.5) * size_um / mpp, (rows + 0.5) * size_um / mpp
    turn = np.deg2rad(10)
    return 4000 + u * np.cos(turn) - v * np.sin(turn), 3000 + u * np.sin(turn) + v * np.cos(turn)


def write_matrix(path: Path, barcodes: Array, counts: Array) -> None:
    """A 10x matrix: features x barcodes as compressed columns."""
    sparse = sp.csr_matrix(counts)
    genes = counts.shape[1]
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = barcodes.astype("S")
        matrix["data"], matrix["indices"] = sparse.data.astype(np.int32), sparse.indices.astype(np.int64)
        matrix["indptr"] = sparse.indptr.astype(np.int64)
        matrix["shape"] = np.array([genes, len(barcodes)], np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(genes)], "S16")
        features["name"] = np.array([f"GENE{i}" for i in range(genes)], "S8")
        features["feature_type"] = np.array(["Gene Expression"] * genes, "S16")
        features["genome"] = np.array(["GRCh38"] * genes, "S8")
