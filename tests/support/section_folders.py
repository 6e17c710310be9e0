"""Folders of measured sections, laid out as their vendors publish them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

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
