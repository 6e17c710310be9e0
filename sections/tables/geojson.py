"""Cells and regions from GeoJSON, as QuPath, InstanSeg, CellViT and Space Ranger 4 write it.

Coordinates are level-0 pixels, x right and y down. Features are read one at a time, since a million cells
take a gigabyte of text. A bare array of features, which QuPath exports too, is accepted.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.sections.columns import Columns
from mclst.sections.errors import SectionError
from mclst.sections.section import Spots
from mclst.sections.tables.cells import MAX_COORDINATE, MAX_ID_CHARACTERS

BLOCK_CHARACTERS = 1 << 20
MAX_FEATURE_CHARACTERS = 256 << 20
MAX_VERTICES = 20_000_000
"""Of all regions together: 320 MB. Cells are forgotten one by one and have no such limit."""
WHITE = re.compile(r"[ \t\r\n\x1e]*")
"""Also what RFC 8142 puts before each text of a sequence."""
ID_PROPERTIES = ("cell_id", "cellID", "Object ID", "label")
GEOJSON_CELLS = "GeoJSON cells"
PARTS_ARE_CELLS = ("annotation", "")
"""Object types whose MultiPolygon holds many cells, as CellViT writes a class of cells."""
OF_CELLS, AROUND_CELLS = frozenset({"cell", "detection", "tile"}), frozenset({"annotation", "tmaCore"})
"""QuPath's object types: where a file has the first, the others are what lies around them."""
TYPE_AS_ID = re.compile(r"Path\w*Object", re.ASCII)
"""QuPath before 0.3, and who writes as it did, give the type in place of an id."""
BARE = frozenset({"coordinates", "geometries"})
"""One of these is in a geometry that is no feature's."""
MAX_COLLECTIONS = 16
"""Most GeometryCollections within each other."""

Polygon = tuple[NDArray[np.float64], ...]
"""Rings float64 [v, 2]: the outline, then the holes."""


@dataclass(frozen=True)
class Cell:
    """A cell: its id, center (x, y), classification ("" if none), object type, and GeoJSON geometry."""

    id: str
    center: tuple[float, float]
    classification: str
    object_type: str
    geometry: dict[str, Any]


def is_geojson(first: bytes) -> bool:
    """Whether a file that begins so is JSON."""
    return first.removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n\x1e")[:1] in (b"{", b"[")


def read_cells(path: Path) -> Spots:
    """Read cells as spots: centroids, ids, and their classification as a column.

    Raises SectionError naming the feature if a coordinate is no number, a geometry is damaged or unknown, an
    id appears twice, or there are no cells.
    """
    ids: list[str] = []
    centers: list[tuple[float, float]] = []
    classes: list[str] = []
    types: list[str] = []
    for cell in stream_cells(path):
        ids.append(cell.id)
        centers.append(cell.center)
        classes.append(sys.intern(cell.classification))
        types.append(sys.intern(cell.object_type))
    if not ids:
        raise SectionError(f"{path}: there are no cells; give features with polygons or points")
    note = ""
    if OF_CELLS & set(types) and AROUND_CELLS & set(types):
        kept = [row for row, kind in enumerate(types) if kind not in AROUND_CELLS]
        note = f"; {len(ids) - len(kept):,} left out as annotations around cells"
        ids, centers = [ids[row] for row in kept], [centers[row] for row in kept]
        classes, types = [classes[row] for row in kept], [types[row] for row in kept]
    if len(set(ids)) < len(ids):
        name = next(name for name, count in Counter(ids).items() if count > 1)
        raise SectionError(f"{path}: two cells have the id {name!r}; a cell may appear once")
    columns = {"classification": classes, "object_type": types}
    return Spots(
        path=path,
        variant=GEOJSON_CELLS,
        id=np.array(ids, dtype=np.str_),
        xy_px=np.array(centers, dtype=np.float64),
        array_xy=None,
        row=np.arange(1, len(ids) + 1, dtype=np.int64),
        columns=Columns(
            range(len(ids)),
            {name: np.array(values, dtype=object) for name, values in columns.items() if any(values)},
        ),
        spot_diameter_px=None,
        coordinates=f"centroids of cells as x, y in level-0 px{note}",
    )


def stream_cells(path: Path) -> Iterator[Cell]:
    """Yield the cells of a file in order; raises SectionError as `read_cells` does."""
    for number, feature in enumerate(stream_features(path), start=1):
        at = f"{path}: feature {number}"
        stated = feature.get("properties")
        properties: dict[str, Any] = stated if isinstance(stated, dict) else {}
        geometry = feature.get("geometry")
        if not isinstance(geometry, dict):
            raise SectionError(f"{at} has no geometry; take it out")
        name = _id(feature, properties, number)
        kind = _object_type(properties)
        pieces = _pieces(at, geometry, split=kind in PARTS_ARE_CELLS)
        for part, piece in enumerate(pieces, start=1):
            yield Cell(
                name if len(pieces) == 1 else f"{name}/{part}",
                _center(at, piece),
                _classification(properties.get("classification")),
                kind,
                piece,
            )


def read_regions(path: Path) -> list[Polygon]:
    """Read the polygons of a file; points and lines are no regions, nor are cells beside annotations.

    Raises SectionError if there is none, one is damaged, or all have more than MAX_VERTICES vertices.
    """
    regions: list[Polygon] = []
    of_cells: list[Polygon] = []
    vertices, annotated = [0, 0], False  # of regions, of cells
    for number, feature in enumerate(stream_features(path), start=1):
        at = f"{path}: feature {number}"
        geometry = feature.get("geometry", feature if BARE & feature.keys() else None)
        if not isinstance(geometry, dict):
            raise SectionError(f"{at} has no geometry; take it out")
        kind = _object_type(feature.get("properties"))
        if kind in AROUND_CELLS and not annotated:
            annotated = True
            of_cells.clear()
            vertices[1] = 0
        is_cell = kind in OF_CELLS
        if is_cell and annotated:
            continue
        for piece in _polygons(at, geometry):
            polygon = tuple(_ring(at, ring) for ring in _list(at, piece["coordinates"]))
            vertices[is_cell] += sum(map(len, polygon))
            if sum(vertices) > MAX_VERTICES:
                raise SectionError(
                    f"{at}: the regions have more than {MAX_VERTICES:,} vertices; simplify them"
                )
            (of_cells if is_cell else regions).append(polygon)
    regions += of_cells
    if not regions:
        raise SectionError(f"{path}: there is no polygon; give regions as Polygon or MultiPolygon")
    return regions


def _object_type(properties: Any) -> str:
    """QuPath's spelling, else InstanSeg's; "" if neither is there."""
    if not isinstance(properties, dict):
        return ""
    return str(properties.get("objectType") or properties.get("object_type") or "")[:MAX_ID_CHARACTERS]


def _polygons(at: str, geometry: dict[str, Any], depth: int = 0) -> Iterator[dict[str, Any]]:
    """Polygons of a geometry, and of those in a collection."""
    kind = geometry.get("type")
    if kind in ("Polygon", "MultiPolygon"):
        yield from _pieces(at, geometry, split=True)
    elif kind == "GeometryCollection":
        parts = geometry.get("geometries")
        if depth == MAX_COLLECTIONS or not isinstance(parts, list):
            raise SectionError(f"{at} has a collection that is damaged or nests too deep; take it out")
        for part in parts:
            if not isinstance(part, dict):
                raise SectionError(f"{at} has a collection of what is no geometry; take it out")
            yield from _polygons(at, part, depth + 1)


def _pieces(at: str, geometry: dict[str, Any], *, split: bool) -> list[dict[str, Any]]:
    """Single cells of a geometry."""
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind in ("Point", "Polygon") or (kind == "MultiPolygon" and not split):
        return [geometry]
    if kind in ("MultiPoint", "MultiPolygon"):
        return [{"type": kind.removeprefix("Multi"), "coordinates": part} for part in _list(at, coordinates)]
    raise SectionError(f"{at} is a {str(kind)[:40]}, which is no cell and no region; give polygons or points")


def _center(at: str, geometry: dict[str, Any]) -> tuple[float, float]:
    """Centroid of the area, holes left out; of a polygon without area the mean of its vertices."""
    if geometry["type"] == "Point":
        point = _ring(at, [geometry["coordinates"]], least=1)[0]
        return float(point[0]), float(point[1])
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    rings = [
        (_ring(at, ring), -1.0 if number else 1.0)
        for polygon in _list(at, polygons)
        for number, ring in enumerate(_list(at, polygon))
    ]
    origin = rings[0][0][0]  # near the cell, so that products of large coordinates lose no digits
    area, moment = 0.0, np.zeros(2)
    for ring, sign in rings:
        here = ring - origin
        following = np.concatenate((here[1:], here[:1]))
        cross = here[:, 0] * following[:, 1] - here[:, 1] * following[:, 0]
        twice = float(cross.sum())
        sign = sign if twice >= 0 else -sign
        area += sign * twice
        moment += sign * ((here + following) * cross[:, None]).sum(axis=0) / 3
    outline = rings[0][0]
    center = origin + moment / area if abs(area) > 1e-9 else outline.mean(axis=0)
    if not ((center >= outline.min(axis=0) - 1) & (center <= outline.max(axis=0) + 1)).all():
        center = outline.mean(axis=0)  # a self-crossing outline, whose signed areas cancel
    return float(center[0]), float(center[1])


def _ring(at: str, ring: Any, least: int = 3) -> NDArray[np.float64]:
    try:
        values = np.asarray([vertex[:2] for vertex in _list(at, ring)], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise SectionError(f"{at} has a coordinate that is no number; export it again") from error
    if values.ndim != 2 or values.shape[1] != 2 or len(values) < least:
        raise SectionError(
            f"{at} has a ring of {len(values)} vertices, where {least} are needed; take it out"
        )
    if not (np.abs(values) <= MAX_COORDINATE).all():
        raise SectionError(f"{at} has a coordinate that is not finite or too large; give level-0 pixels")
    return values


def _list(at: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise SectionError(f"{at} has a geometry without coordinates; take it out")
    return value


def _id(feature: dict[str, Any], properties: dict[str, Any], number: int) -> str:
    for value in (feature.get("id"), *(properties.get(name) for name in ID_PROPERTIES)):
        if isinstance(value, (str, int)) and str(value).strip() and not TYPE_AS_ID.fullmatch(str(value)):
            return str(value).strip()[:MAX_ID_CHARACTERS]
    return str(number)


def _classification(value: Any) -> str:
    """QuPath's {"name": …} or {"names": […]}, or a plain name."""
    if isinstance(value, dict):
        names = value.get("names")
        value = ": ".join(map(str, names)) if isinstance(names, list) else value.get("name")
    return "" if value is None else str(value)[:MAX_ID_CHARACTERS]


def stream_features(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the features of a FeatureCollection, of a bare array, or a single feature or geometry.

    Raises SectionError if the text is not JSON, or a feature takes more than MAX_FEATURE_CHARACTERS.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _Reader(path, file).features()
    except UnicodeDecodeError as error:
        raise SectionError(f"{path}: the file is not UTF-8; export it again") from error
    except RecursionError as error:
        raise SectionError(f"{path}: the file nests too deep; export it again") from error
    except OSError as error:
        raise SectionError(f"{path}: the file cannot be read ({error.strerror or error})") from error


class _Reader:
    """Decode JSON values one after another from a text that is never in memory as a whole."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.ended = "", 0, False
        self.decoder = json.JSONDecoder()

    def features(self) -> Iterator[dict[str, Any]]:
        if self._peek() == "[":
            yield from self._array()
        else:
            yield from self._object()
            while self._peek() == "{":  # a feature per line, as GDAL's GeoJSONSeq
                yield from self._object()
        if self._peek():
            self._fail()

    def _object(self) -> Iterator[dict[str, Any]]:
        rest: dict[str, Any] = {}
        streamed = False
        self._expect("{")
        while self._peek() != "}":
            key = self._value()
            self._expect(":")
            if key == "features" and self._peek() == "[":
                streamed = True
                yield from self._array()
            else:
                rest[str(key)] = self._value()
            if self._peek() == ",":
                self.at += 1
            elif self._peek() != "}":
                self._fail()
        self.at += 1
        if not streamed:
            if "geometry" not in rest and not BARE & rest.keys():
                raise SectionError(f"{self.path}: the file is JSON without features; give a GeoJSON")
            yield rest

    def _array(self) -> Iterator[dict[str, Any]]:
        self._expect("[")
        number = 0
        while self._peek() != "]":
            number += 1
            feature = self._value()
            if not isinstance(feature, dict):
                raise SectionError(f"{self.path}: feature {number} is no object; export the file again")
            yield feature
            if self._peek() == ",":
                self.at += 1
            elif self._peek() != "]":
                self._fail()
        self.at += 1

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except ValueError as error:
                if self.ended:
                    self._fail(error)
            else:
                # A number at the end of the block may go on in the next one.
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            if len(self.text) - self.at > MAX_FEATURE_CHARACTERS:
                raise SectionError(
                    f"{self.path}: one feature takes more than {MAX_FEATURE_CHARACTERS >> 20} MB; split it"
                )
            self._more()

    def _more(self) -> None:
        # Twice as much each time, so that a long feature is tried few times.
        block = self.file.read(max(BLOCK_CHARACTERS, len(self.text) - self.at))
        self.ended = not block
        self.text, self.at = self.text[self.at :] + block, 0

    def _peek(self) -> str:
        while True:
            match = WHITE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more()

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            self._fail()
        self.at += 1

    def _fail(self, error: Exception | None = None) -> None:
        raise SectionError(f"{self.path}: the file is not GeoJSON, or is cut off; export it again") from error
