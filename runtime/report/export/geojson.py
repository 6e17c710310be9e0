"""Export the spots as GeoJSON that QuPath imports as detections with measurements.

QuPath's readers (QuPathTypeAdapters, PathIO, ROITypeAdapters) expect level-0 pixels with y down, closed
rings, `isEllipse` to replace a polygon by the ellipse in its bounding box, and NaN measurements as text.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.atomic import atomic_file
from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.morans_i import BLOCK_BYTES
from mclst.runtime.expression_map.reader import Map
from mclst.sections.tables.geojson import Cell, stream_cells

DEFAULT_GENES = 50
"""All genes would take a gigabyte on disk and in QuPath."""
COLOR = (91, 58, 158)
OF_SPOTS = ("nearest_distance", "effective_k", "distance_percentile", "outside", "expected_error")
"""Columns of `obs` that become measurements; `outside` is 1 or 0."""


def write_geojson(
    expression_map: Map, path: Path, genes: Sequence[str] = (), *, cells: Path | None = None
) -> None:
    """Write the spots of a map, one feature per line, atomically.

    Parameters
    ----------
    expression_map : Map
        Spots become circles of their diameter, those of a grid squares.
    path : Path
    genes : sequence of str
        Genes measured at each spot. Default: the first 50 of `Map.order`.
    cells : Path, optional
        GeoJSON that the spots came from: each gets its own outline and classification back.

    Raises
    ------
    InputError
        If the map lacks a gene, or `cells` lacks a spot of the map.
    OutputError
        If the file cannot be written.
    """
    indices = expression_map.gene_indices(genes) if genes else expression_map.order[:DEFAULT_GENES]
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        for number, feature in enumerate(_features(expression_map, indices, cells)):
            file.write(
                (",\n" if number else "")
                + json.dumps(feature, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            )
        file.write("\n]}\n")


def _features(expression_map: Map, genes: Sequence[int], cells: Path | None) -> Iterator[dict[str, Any]]:
    names = [expression_map.genes[gene] for gene in genes]
    given = {name: expression_map.of_spots(name) for name in OF_SPOTS}
    columns = {name: column for name, column in given.items() if column is not None}
    spots, radius = expression_map.spots, expression_map.spot_diameter_px / 2
    outlines = None if cells is None else _outlines(cells, spots)
    rows = max(1, BLOCK_BYTES // (4 * len(expression_map.genes)))
    for start in range(0, len(spots), rows):
        block = np.asarray(expression_map.expression[start : start + rows])[:, genes]
        for row, values in enumerate(block, start=start):
            measured = dict(zip(names, values.tolist(), strict=True))
            measured |= {name: float(column[row]) for name, column in columns.items()}
            feature = _feature(expression_map, spots[row], expression_map.xy_px[row], radius, measured)
            if outlines is not None:
                cell = next(outlines)
                feature["geometry"] = cell.geometry
                feature["properties"]["objectType"] = "detection"
                del feature["properties"]["classification"]
                if cell.classification:
                    feature["properties"]["classification"] = {"name": cell.classification}
            yield feature


def _outlines(path: Path, spots: Sequence[str]) -> Iterator[Cell]:
    """The cells of the spots, which are in the file's order."""
    cells = stream_cells(path)
    for spot in spots:
        cell = next((cell for cell in cells if cell.id == spot), None)
        if cell is None:
            raise InputError(
                f"{path} has no cell {spot}, or not in the map's order; give the map's own cells"
            )
        yield cell


def _feature(
    expression_map: Map, spot: str, center: NDArray[np.float64], radius: float, measured: Mapping[str, float]
) -> dict[str, Any]:
    (left, top), (right, bottom) = (np.round(center + side, 2).tolist() for side in (-radius, radius))
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [ring]}
    if not expression_map.on_grid:
        geometry["isEllipse"] = True
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{expression_map.title}/{spot}")),
        "geometry": geometry,
        "properties": {
            "objectType": "detection",
            "name": spot,
            "classification": {"name": "spot", "color": list(COLOR)},
            "measurements": {name: _number(value) for name, value in measured.items()},
        },
    }


def _number(value: float) -> float | str:
    """Round to the seven digits of a float32."""
    return float(f"{value:.7g}") if math.isfinite(value) else "NaN"
