"""Spots as GeoJSON that QuPath imports as detections with measurements.

What QuPath reads, after its QuPathTypeAdapters, PathIO and ROITypeAdapters: level-0 pixels with y down; closed rings;
`isEllipse`, which makes an ellipse of a polygon's bounding box; `measurements` by name, not-a-number as text.
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
from mclst.runtime.expression_map.morans_i import BLOCK_BYTES
from mclst.runtime.expression_map.reader import Map

DEFAULT_GENES = 50
"""A file of all genes would take a gigabyte, and QuPath as much memory."""
COLOUR = (91, 58, 158)
MEASURED = ("nearest_distance", "effective_k")


def write_geojson(found: Map, out: Path, genes: Sequence[str] = ()) -> Path:
    """Write a map's spots to `out`, a feature per line, whole or not at all; returns `out`.

    genes: measured at each spot; by default the 50 most spatially structured. A spot is a circle of its diameter, a place
    of a grid a square. Raises InputError where the map lacks a gene, OutputError where `out` cannot be written.
    """
    places = found.gene_indices(genes) if genes else found.order[:DEFAULT_GENES]
    with atomic_file(out) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type":"FeatureCollection","features":[\n')
        for number, feature in enumerate(_features(found, places)):
            file.write(
                (",\n" if number else "")
                + json.dumps(feature, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            )
        file.write("\n]}\n")
    return out


def _features(found: Map, places: Sequence[int]) -> Iterator[dict[str, Any]]:
    names = [found.genes[place] for place in places]
    own = {name: found.table[name].to_numpy(dtype=np.float64) for name in MEASURED if name in found.table}
    spots, radius = found.spots, found.spot_diameter_px / 2
    rows = max(1, BLOCK_BYTES // (4 * len(found.genes)))
    for start in range(0, len(spots), rows):
        block = np.asarray(found.expression[start : start + rows])[:, places]
        for row, values in enumerate(block, start=start):
            measured = dict(zip(names, values.tolist(), strict=True))
            measured |= {name: float(column[row]) for name, column in own.items()}
            yield _feature(found, spots[row], found.xy_px[row], radius, measured)


def _feature(
    found: Map, spot: str, centre: NDArray[np.float64], radius: float, measured: Mapping[str, float]
) -> dict[str, Any]:
    (left, top), (right, bottom) = (np.round(centre + side, 2).tolist() for side in (-radius, radius))
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [ring]}
    if not found.on_grid:
        geometry["isEllipse"] = True
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{found.title}/{spot}")),
        "geometry": geometry,
        "properties": {
            "objectType": "detection",
            "name": spot,
            "classification": {"name": "spot", "color": list(COLOUR)},
            "measurements": {name: _number(value) for name, value in measured.items()},
        },
    }


def _number(value: float) -> float | str:
    """To seven digits, as many as a float32 has."""
    return float(f"{value:.7g}") if math.isfinite(value) else "NaN"
