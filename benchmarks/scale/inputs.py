"""Made-up inputs of full size: a slide, the cells on it, and the 2 µm bins of a Visium HD run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import tifffile
from numpy.typing import NDArray

TILE_PX, PICTURES = 512, 6
MPP = 0.25
CORNERS = 10
GENES, ENTRIES_PER_BIN = 18_085, 6
"""Genes of 10x's human probe set; counts per 2 µm bin in well filled tissue."""
BINS_AT_ONCE = 1_000_000
STEP = 2_999
"""Prime, so that a bin's genes differ."""


def write_slide(path: Path, side_px: int) -> Path:
    """Write a pyramidal JPEG TIFF of 0.25 µm/px: purple disks on pink, the same few pictures in turns."""
    rng = np.random.default_rng(0)
    pictures = [
        simplejpeg.encode_jpeg(_tissue(rng), quality=85, colorsubsampling="420") for _ in range(PICTURES)
    ]
    levels = [side_px]
    while levels[-1] > 4 * TILE_PX:
        levels.append(levels[-1] // 4)
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for number, side in enumerate(levels):
            tif.write(
                _tiles(pictures, side), shape=(side, side, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX),
                photometric="ycbcr", subsampling=(2, 2), compression="jpeg", subfiletype=int(number > 0),
                resolution=(1e4 / MPP / 4**number,) * 2, resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    return path


def _tissue(rng: np.random.Generator) -> NDArray[np.uint8]:
    picture = rng.normal((226, 168, 200), 6, (TILE_PX, TILE_PX, 3))
    y, x = np.ogrid[:TILE_PX, :TILE_PX]
    for cx, cy, radius in zip(*rng.uniform(0, TILE_PX, (2, 90)), rng.uniform(8, 15, 90), strict=True):
        picture[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = rng.normal((110, 70, 150), 10)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _tiles(pictures: list[bytes], side: int) -> Iterator[bytes]:
    count = -(-side // TILE_PX)
    for number in range(count * count):
        yield pictures[(number * 7 + number // count) % len(pictures)]


def write_cells(path: Path, count: int, side_px: int) -> Path:
    """Write cells as QuPath exports them: polygons on a jittered lattice over the whole slide."""
    rng = np.random.default_rng(1)
    columns = int(np.ceil(np.sqrt(count)))
    pitch = side_px / columns
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        for number in range(count):
            place = np.array([number % columns, number // columns]) + 0.5 + rng.uniform(-0.2, 0.2, 2)
            ring = np.round(place * pitch + circle * rng.uniform(0.2, 0.3) * pitch, 2)
            feature = {
                "type": "Feature", "id": f"cell-{number}",
                "geometry": {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()]]},
                "properties": {"objectType": "cell", "classification": {"name": "Tumor"}},
            }  # fmt: skip
            file.write((",\n" if number else "") + json.dumps(feature, separators=(",", ":")))
        file.write("\n]}\n")
    return path


def write_bins(folder: Path, side: int) -> Path:
    """Write `side` x `side` bins of 2 µm in Space Ranger's layout, each with a few counts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    square = folder / "binned_outputs" / "square_002um"
    (square / "spatial").mkdir(parents=True)
    count = side * side
    with h5py.File(square / "filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        options: dict[str, Any] = {
            "chunks": (min(count, 1 << 18),),
            "compression": "gzip",
            "compression_opts": 1,
        }
        names = matrix.create_dataset("barcodes", (count,), "S21", **options)
        data = matrix.create_dataset("data", (count * ENTRIES_PER_BIN,), np.int32, **options)
        indices = matrix.create_dataset("indices", (count * ENTRIES_PER_BIN,), np.int64, **options)
        matrix["indptr"] = np.arange(count + 1, dtype=np.int64) * ENTRIES_PER_BIN
        matrix["shape"] = np.array([GENES, count], np.int32)
        features = matrix.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(GENES)], "S15")
        features["name"] = np.array([f"GENE{i}" for i in range(GENES)], "S9")
        features["feature_type"] = np.array(["Gene Expression"] * GENES, "S15")
        writer = None
        for start in range(0, count, BINS_AT_ONCE):
            number = np.arange(start, min(start + BINS_AT_ONCE, count))
            barcodes, row, column = _barcodes(number, side), number // side, number % side
            names[start : start + len(number)] = barcodes
            entry = np.arange(len(number))[:, None] * 7 + np.arange(ENTRIES_PER_BIN) * STEP + start
            span = slice(start * ENTRIES_PER_BIN, (start + len(number)) * ENTRIES_PER_BIN)
            indices[span] = np.sort(entry % GENES, axis=1).ravel()
            data[span] = 1 + (entry % 3 == 0).ravel()
            table = pa.table(
                {
                    "barcode": barcodes.astype(str), "in_tissue": np.ones(len(number), np.int32),
                    "array_row": row, "array_col": column,
                    "pxl_row_in_fullres": (row + 0.5) * 2 / MPP,
                    "pxl_col_in_fullres": (column + 0.5) * 2 / MPP,
                }
            )  # fmt: skip
            writer = writer or pq.ParquetWriter(square / "spatial" / "tissue_positions.parquet", table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    return folder


def _barcodes(number: NDArray[np.int64], side: int) -> NDArray[np.bytes_]:
    """s_002um_RRRRR_CCCCC-1 of each bin."""
    letters = np.tile(np.frombuffer(b"s_002um_00000_00000-1", np.uint8), (len(number), 1))
    for first, values in ((8, number // side), (14, number % side)):
        for digit in range(5):
            letters[:, first + digit] += (values // 10 ** (4 - digit) % 10).astype(np.uint8)
    return letters.view("S21").ravel()
