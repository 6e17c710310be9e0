"""Export a map as a folder like Space Ranger's, which Seurat's Load10X_Spatial opens, and scanpy and squidpy.

Layout: Space Ranger 2 and later, `filtered_feature_bc_matrix.h5` and `spatial/`; what is read of it:
satijalab/seurat 5.5, Load10X_Spatial, Read10X_h5, Read10X_Image and Read10X_Coordinates.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from mclst.runtime.atomic import AtomicFolder
from mclst.runtime.errors import write_error
from mclst.runtime.expression_map.morans_i import BLOCK_BYTES
from mclst.runtime.expression_map.reader import Map
from mclst.sections.tables.synonyms import stable_id

MATRIX = "filtered_feature_bc_matrix.h5"
MARK = MATRIX
"""Identifies a folder that may be overwritten."""
LOWRES_PX, HIRES_PX = 600, 2000
"""Longest sides of Space Ranger's two pictures."""
IDS = ("ensembl_id", "gene_ids", "gene_id")
POSITIONS = ("array_row", "array_col")
FIDUCIAL = 21 / 13
"""Diameters of a spot in that of a fiducial, as in Space Ranger's files; Seurat insists on one."""
CHECKED_AT_ONCE = 1 << 20
CONVERTED = re.compile(
    r"\s*[-+]?(0x[0-9a-f.]+(p[-+]?\d+)?|(\d+\.?\d*|\.\d+)([ed][-+]?\d+)?|inf(inity)?|nan|na|t|f|true|false)i?\s*",
    re.ASCII | re.IGNORECASE,
)
"""What read.csv of R and pandas take for a number or a flag; such names come back as other ones."""
MISSING = frozenset({"", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A", "#NA"})
"""What they take for no name."""
PREFIX = "spot-"
R_ENTRIES = 2**31 - 1
"""Entries that a sparse matrix of R can hold."""


def write_seurat(expression_map: Map, path: Path, *, overwrite: bool) -> tuple[str, ...]:
    """Write a map as a 10x folder, atomically, in blocks of rows.

    The matrix holds the map's own values as float32, without zeros. Spots without a value (unreadable tiles)
    have in_tissue 0 and are not in the matrix, as in Space Ranger's filtered one.

    Parameters
    ----------
    expression_map : Map
    path : Path
    overwrite : bool
        Whether to replace such a folder.

    Returns
    -------
    tuple of str
        Notes for the user.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    with AtomicFolder(path, mark=MARK, overwrite=overwrite) as folder:
        try:
            spatial = folder.part / "spatial"
            spatial.mkdir()
            names = spot_names(expression_map.spots)
            known, entries = _write_matrix(expression_map, names, folder.part / MATRIX)
            _write_positions(expression_map, names, known, spatial / "tissue_positions.csv")
            _write_pictures(expression_map, spatial)
        except OSError as error:
            raise write_error(path, error) from error
        folder.publish()
    return tuple(_notes(expression_map, names, entries, path.name))


def spot_names(spots: Sequence[str]) -> list[str]:
    """Names that a CSV keeps: with PREFIX where all would be read as numbers, or one as missing."""
    changed = any(name in MISSING for name in spots) or all(map(CONVERTED.fullmatch, spots))
    return [f"{PREFIX}{name}" for name in spots] if changed else list(spots)


def _notes(expression_map: Map, names: Sequence[str], entries: int, folder: str) -> Iterator[str]:
    if list(names) != list(expression_map.spots):
        yield f"spot names in {folder} begin with {PREFIX}, since R and pandas would read them as numbers"
    in_seurat = Counter(re.sub("[_|]", "-", gene) for gene in expression_map.genes)
    if twice := [gene for gene, count in in_seurat.items() if count > 1]:
        yield (
            f"Seurat turns _ and | in genes into -, so {len(twice)} names of {folder} are there twice, such "
            f"as {twice[0]}; load it with use.names = FALSE"
        )
    if entries > R_ENTRIES:
        yield f"{folder} holds {entries:,} values, and a sparse matrix of R at most {R_ENTRIES:,}"


def _write_matrix(expression_map: Map, spots: Sequence[str], path: Path) -> tuple[NDArray[np.bool_], int]:
    """Write features x barcodes by columns; return which spots have values, and the number of entries."""
    genes, names = expression_map.genes, np.array(spots, dtype=np.str_)
    known = np.zeros(len(names), np.bool_)
    indptr = [np.zeros(1, np.int64)]
    entries = 0
    sums: dict[str, int] = {}
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        options: dict[str, Any] = {"maxshape": (None,), "chunks": (1 << 16,), "compression": "gzip"}
        data = group.create_dataset("data", (0,), np.float32, compression_opts=1, **options)
        indices = group.create_dataset("indices", (0,), np.int64, compression_opts=1, **options)
        for start, block in _blocks(expression_map):
            rows = ~np.isnan(block).all(axis=1)
            known[start : start + len(block)] = rows
            kept = block[rows]
            row, column = np.nonzero(kept)
            for dataset, values in ((data, kept[row, column]), (indices, column.astype(np.int64))):
                dataset.resize((entries + len(values),))
                dataset[entries:] = values
                sums[dataset.name] = zlib.crc32(values.tobytes(), sums.get(dataset.name, 0))
            indptr.append(entries + np.cumsum(np.count_nonzero(kept, axis=1)))
            entries += len(row)
        group["indptr"] = np.concatenate(indptr)
        group["shape"] = np.array([len(genes), int(known.sum())], np.int32)
        group["barcodes"] = _bytes(names[known].tolist())
        features = group.create_group("features")
        features["id"], features["name"] = _bytes(_gene_ids(expression_map)), _bytes(genes)
        features["feature_type"] = _bytes(["Gene Expression"] * len(genes))
        features["genome"] = _bytes([""] * len(genes))
        features["_all_tag_keys"] = _bytes(["genome"])
        file.attrs["filetype"], file.attrs["version"] = _bytes(["matrix"]), np.array([2], np.int32)
        file.attrs["library_ids"], file.attrs["original_gem_groups"] = (
            _bytes(["mclst"]),
            np.array([1], np.int32),
        )
        file.attrs["software_version"] = "mclst"
    _check(path, sums)
    return known, entries


def _check(path: Path, sums: Mapping[str, int]) -> None:
    """Read back what was written, for HDF5 tells no full disk; OSError if it differs."""
    with h5py.File(path, "r") as file:
        for name, expected in sums.items():
            dataset, actual = file[name], 0
            for start in range(0, dataset.size, CHECKED_AT_ONCE):
                actual = zlib.crc32(dataset[start : start + CHECKED_AT_ONCE].tobytes(), actual)
            if actual != expected:
                raise OSError(f"{path.name} reads back wrong")


def _blocks(expression_map: Map) -> Iterator[tuple[int, NDArray[np.float32]]]:
    rows = max(1, BLOCK_BYTES // (16 * len(expression_map.genes)))
    for start in range(0, len(expression_map.xy_px), rows):
        yield start, np.asarray(expression_map.expression[start : start + rows], np.float32)


def _bytes(names: Any) -> NDArray[np.bytes_]:
    """Fixed width, as Space Ranger stores names."""
    return np.array([str(name).encode() for name in names], dtype=np.bytes_)


def _gene_ids(expression_map: Map) -> list[str]:
    """Ensembl ids where the map has them, else the names."""
    table = expression_map.gene_table
    column = next((name for name in IDS if name in table), None)
    given = [""] * len(expression_map.genes) if column is None else table[column].astype(str).tolist()
    return [
        value if stable_id(value) else gene for value, gene in zip(given, expression_map.genes, strict=True)
    ]


def _write_positions(expression_map: Map, spots: Sequence[str], known: NDArray[np.bool_], path: Path) -> None:
    """A row per spot; array_row and array_col are 0 where the spots are of no array."""
    table = expression_map.table
    array = {name: table.get(name, 0) for name in POSITIONS}
    x, y = expression_map.xy_px.T
    frame = pd.DataFrame(
        {
            "barcode": list(spots),
            "in_tissue": known.astype(np.int8),
            **{name: np.asarray(values) for name, values in array.items()},
            "pxl_row_in_fullres": np.round(y, 2),
            "pxl_col_in_fullres": np.round(x, 2),
        }
    )
    frame.to_csv(path, index=False, lineterminator="\n")


def _write_pictures(expression_map: Map, spatial: Path) -> None:
    """The tissue image in both sizes, and their px per level-0 px."""
    picture = Image.fromarray(expression_map.image)
    factors = {"spot_diameter_fullres": expression_map.spot_diameter_px}
    factors["fiducial_diameter_fullres"] = expression_map.spot_diameter_px * FIDUCIAL
    for name, longest in (("hires", HIRES_PX), ("lowres", LOWRES_PX)):
        share = min(1.0, longest / max(picture.size))
        size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
        scaled = (
            picture if size == picture.size else picture.resize(size, Image.Resampling.BOX, reducing_gap=2)
        )
        scaled.save(spatial / f"tissue_{name}_image.png")
        factors[f"tissue_{name}_scalef"] = expression_map.image_scale * (max(scaled.size) / max(picture.size))
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
