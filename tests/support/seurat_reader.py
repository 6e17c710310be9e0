"""What Load10X_Spatial of Seurat 5.5 makes of a folder, step by step as its R code does.

Followed: satijalab/seurat R/preprocessing.R (Load10X_Spatial, Read10X_h5, Read10X_Image, Read10X_Coordinates,
Read10X_ScaleFactors) and R/objects.R (scalefactors); satijalab/seurat-object 5.4 (CheckFeaturesNames, LogMap,
subset.Centroids); R's read.csv, type.convert and make.unique. R itself is not run.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from PIL import Image

COLUMNS = ("barcodes", "tissue", "row", "col", "imagerow", "imagecol")


@dataclass(frozen=True)
class Loaded:
    """counts: features x cells. xy: (imagecol, imagerow) of the cells. image: [h, w, channels], 0 to 1."""

    features: list[str]
    cells: list[str]
    counts: sp.csc_matrix
    xy: NDArray[np.float64]
    image: NDArray[np.float64]
    factors: dict[str, float]


def load_10x_spatial(folder: Path) -> Loaded:
    assert not (folder / "binned_outputs").exists()
    features, cells, counts = read_10x_h5(folder / "filtered_feature_bc_matrix.h5")
    spatial = folder / "spatial"
    with Image.open(spatial / "tissue_lowres_image.png") as picture:  # png::readPNG
        assert picture.format == "PNG"
        image = np.asarray(picture) / 255.0
    raw = json.loads((spatial / "scalefactors_json.json").read_text())
    factors = {
        "spot": raw["spot_diameter_fullres"], "fiducial": raw["fiducial_diameter_fullres"],
        "hires": raw["tissue_hires_scalef"], "lowres": raw["tissue_lowres_scalef"],
    }  # fmt: skip
    assert all(isinstance(value, int | float) and not isinstance(value, bool) for value in factors.values())
    (positions,) = spatial.glob("*tissue_positions*")  # Sys.glob; several would be an error
    place = read_10x_coordinates(positions)
    # .image[Cells(.object)]: each cell of the matrix needs its centroid
    xy = np.array([place[cell] for cell in cells], np.float64)
    return Loaded(features, cells, counts, xy, image, factors)


def read_10x_h5(path: Path) -> tuple[list[str], list[str], sp.csc_matrix]:
    with h5py.File(path) as file:
        (genome,) = list(file)  # several groups would be a list of matrices
        assert genome == "matrix"
        group = file[genome]
        types = {value.decode() for value in group["features/feature_type"][:]}
        assert len(types) == 1, "more than one gives a list of matrices"
        shape = tuple(int(size) for size in group["shape"][:])
        indices, pointers = group["indices"][:].astype(int), group["indptr"][:].astype(int)
        values = group["data"][:].astype(np.float64)  # as.numeric
        features = [value.decode() for value in group["features/name"][:]]
        cells = [value.decode() for value in group["barcodes"][:]]
    assert (len(features), len(cells)) == shape and len(pointers) == shape[1] + 1
    counts = sp.csc_matrix((values, indices, pointers), shape=shape)
    counts.check_format(full_check=True)
    features = make_unique(features)
    features = [name.replace("_", "-").replace("|", "-") for name in features]  # CheckFeaturesNames
    for names in (features, cells):  # LogMap: neither empty nor twice
        assert all(names) and len(set(names)) == len(names)
    return features, cells, counts


def read_10x_coordinates(path: Path) -> dict[str, tuple[float, float]]:
    """read.csv with a header only for this name, row.names = 1; then tissue == 1."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    rows = rows[1:] if path.name == "tissue_positions.csv" else rows
    assert all(len(row) == len(COLUMNS) for row in rows)
    columns = [type_convert(list(column)) for column in zip(*rows, strict=True)]
    table = dict(zip(COLUMNS, columns, strict=True))
    names = [as_character(value) for value in table["barcodes"]]
    assert None not in names and len(set(names)) == len(names), "duplicate or missing row names"
    kept = [i for i, tissue in enumerate(table["tissue"]) if tissue == 1]
    return {str(names[i]): (table["imagecol"][i], table["imagerow"][i]) for i in kept}


def type_convert(column: list[str]) -> list[Any]:
    """Logical, integer, double, else text: the first that takes every value; "NA" is missing."""
    texts: list[str | None] = [None if text == "NA" else text for text in column]
    known = [text for text in texts if text is not None]
    if all(text in ("T", "F", "TRUE", "FALSE", "true", "false", "True", "False") for text in known):
        return [None if text is None else text[0] in "Tt" for text in texts]
    for convert in (_integer, _double):
        try:
            return [None if text is None else convert(text.strip()) for text in texts]
        except ValueError:
            continue
    return list(texts)


def _integer(text: str) -> int:
    value = int(text, 16 if text[:2].lower() == "0x" else 10)
    if "_" in text or abs(value) > 2**31 - 1:
        raise ValueError
    return value


def _double(text: str) -> float:
    if "_" in text:
        raise ValueError
    return float.fromhex(text) if text[:2].lower() == "0x" else float(text)


def as_character(value: Any) -> str | None:
    """Of a double, 15 significant digits."""
    return None if value is None else f"{value:.15g}" if isinstance(value, float) else str(value)


def make_unique(names: list[str]) -> list[str]:
    """A second "A" becomes "A.1", a third "A.2"."""
    used, count, result = set(names), Counter[str](), []
    for i, name in enumerate(names):
        if name in names[:i]:
            count[name] += 1
            while f"{name}.{count[name]}" in used:
                count[name] += 1
            name = f"{name}.{count[name]}"
            used.add(name)
        result.append(name)
    return result
