"""Cells and regions of QuPath, InstanSeg, CellViT and Space Ranger 4, against shapely and geopandas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick

from mclst.sections.errors import SectionError
from mclst.sections.tables import geojson
from mclst.sections.tables.geojson import read_cells, read_regions, stream_features
from mclst.sections.tables.regions import in_regions
from mclst.sections.tables.spots import read_spots

SQUARE = [[10.0, 20.0], [30.0, 20.0], [30.0, 60.0], [10.0, 60.0], [10.0, 20.0]]
HOLE = [[12.0, 22.0], [20.0, 22.0], [20.0, 30.0], [12.0, 30.0], [12.0, 22.0]]


def feature(kind: str, coordinates: Any, **more: Any) -> dict[str, Any]:
    properties = more.pop("properties", {})
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties, **more}


def collection(*features: Any, **more: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", **more, "features": list(features)}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def ellipse(x: float, y: float, a: float, b: float, angle: float, n: int = 24) -> list[list[float]]:
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    u, v = a * np.cos(turn), b * np.sin(turn)
    ring = np.column_stack(
        [x + u * math.cos(angle) - v * math.sin(angle), y + u * math.sin(angle) + v * math.cos(angle)]
    ).tolist()
    return [*ring, ring[0]]


QUPATH = collection(
    feature(
        "Polygon",
        [ellipse(100, 80, 7, 4, 0.3)],
        id="81d5b0e6-0c1f-4c4d-8b57-0a4b2f3f2a11",
        properties={
            "objectType": "cell",
            "classification": {"name": "Tumor", "color": [200, 0, 0]},
            "measurements": {"Area µm^2": 80.1},
        },
        nucleusGeometry={"type": "Polygon", "coordinates": [ellipse(100, 80, 3, 2, 0.3)]},
    ),
    feature(
        "Polygon",
        [SQUARE, HOLE],
        id="second",
        properties={"objectType": "detection", "classification": {"names": ["Immune", "CD3"]}},
    ),
    feature("Point", [5.5, 6.5], id="third", properties={"objectType": "detection"}),
)
SPACE_RANGER_4 = collection(
    *(
        feature("Polygon", [ellipse(500.0 * i + 40, 900 - i, 9, 6, i)], properties={"cell_id": i})
        for i in (1, 2, 3)
    )
)
CELLVIT = [
    feature(
        "MultiPolygon",
        [[ellipse(30 * i, 40, 5, 4, 0)] for i in (1, 2)],
        id="uuid-1",
        properties={"objectType": "annotation", "classification": {"name": "Neoplastic", "color": [1, 2, 3]}},
    ),
    feature("MultiPoint", [[7, 8], [9, 10]], id="uuid-2", properties={"objectType": "annotation"}),
]


@pytest.mark.parametrize("content", [QUPATH, SPACE_RANGER_4], ids=["QuPath", "Space Ranger 4"])
def test_cells_have_the_centroids_of_geopandas(tmp_path: Path, content: Any) -> None:
    path = write(tmp_path / "cells.geojson", content)
    spots = read_spots(path)
    theirs = geopandas.read_file(path).set_crs(None, allow_override=True).geometry.centroid
    np.testing.assert_allclose(spots.xy_px, np.column_stack([theirs.x, theirs.y]), rtol=1e-9)
    assert spots.variant == "GeoJSON cells" and "centroids" in spots.coordinates


def test_ids_and_classification_of_qupath(tmp_path: Path) -> None:
    spots = read_cells(write(tmp_path / "cells.geojson", QUPATH))
    assert spots.id.tolist() == ["81d5b0e6-0c1f-4c4d-8b57-0a4b2f3f2a11", "second", "third"]
    assert spots.table["classification"].tolist() == ["Tumor", "Immune: CD3", ""]
    assert spots.table["object_type"].tolist() == ["cell", "detection", "detection"]


def test_ids_of_space_ranger_4(tmp_path: Path) -> None:
    assert read_cells(write(tmp_path / "c.geojson", SPACE_RANGER_4)).id.tolist() == ["1", "2", "3"]


def test_a_class_of_cellvit_is_many_cells(tmp_path: Path) -> None:
    spots = read_cells(write(tmp_path / "cells.json", CELLVIT))  # a bare array
    assert spots.id.tolist() == ["uuid-1/1", "uuid-1/2", "uuid-2/1", "uuid-2/2"]
    np.testing.assert_allclose(spots.xy_px, [[30, 40], [60, 40], [7, 8], [9, 10]], atol=1e-9)
    assert spots.table["classification"].tolist() == ["Neoplastic"] * 2 + [""] * 2


def test_annotations_around_cells_are_left_out_and_counted(tmp_path: Path) -> None:
    tissue = feature("Polygon", [ellipse(90, 90, 80, 80, 0)], properties={"objectType": "annotation"})
    core = feature("Polygon", [SQUARE], properties={"objectType": "tmaCore"})
    mixed = collection(tissue, *QUPATH["features"], core)
    spots = read_cells(write(tmp_path / "all.geojson", mixed))
    alone = read_cells(write(tmp_path / "cells.geojson", QUPATH))
    assert spots.id.tolist() == alone.id.tolist()
    np.testing.assert_array_equal(spots.xy_px, alone.xy_px)
    assert "2 left out as annotations" in spots.coordinates and "left out" not in alone.coordinates


def test_a_type_in_place_of_an_id_is_none(tmp_path: Path) -> None:
    """As QuPath 0.2 and the exporters written after it have it: StarDist's, HoVerNet's."""
    cells = [
        feature("Polygon", [SQUARE], id="PathCellObject", properties={"label": 7}),
        feature("Polygon", [SQUARE], id="PathDetectionObject"),
    ]
    assert read_cells(write(tmp_path / "c.geojson", cells)).id.tolist() == ["7", "2"]


@pytest.mark.parametrize("start", ["", "\x1e"])
def test_a_feature_per_line_is_no_feature_lost(tmp_path: Path, start: str) -> None:
    lines = "".join(f"{start}{json.dumps(one)}\n" for one in QUPATH["features"])
    path = write(tmp_path / "c.geojsonl", lines)
    assert read_spots(path).id.tolist() == read_cells(write(tmp_path / "c.geojson", QUPATH)).id.tolist()
    for junk in ("x", "]", "3"):
        with pytest.raises(SectionError, match="not GeoJSON, or is cut off"):
            read_cells(write(path, f"{json.dumps(QUPATH)} {junk}"))


def test_instansegs_own_spelling_of_the_type(tmp_path: Path) -> None:
    cells = [feature("Polygon", [SQUARE], properties={"object_type": "detection"}) for _ in range(2)]
    spots = read_cells(write(tmp_path / "c.geojson", collection(*cells)))
    assert spots.id.tolist() == ["1", "2"] and spots.table["object_type"].tolist() == ["detection"] * 2


@quick
@given(
    rings=st.lists(
        st.tuples(st.floats(0, 9e4), st.floats(0, 9e4), st.floats(1, 30), st.floats(1, 30), st.floats(0, 3)),
        min_size=1,
        max_size=5,
    ),
    backwards=st.booleans(),
)
def test_any_outline_has_shapelys_centroid(
    tmp_path_factory: pytest.TempPathFactory, rings: list[Any], backwards: bool
) -> None:
    outlines = [ellipse(*ring)[:: -1 if backwards else 1] for ring in rings]
    features = [feature("Polygon", [outline]) for outline in outlines]
    path = write(tmp_path_factory.getbasetemp() / "any.geojson", collection(*features))
    theirs = [shapely.Polygon(outline).centroid for outline in outlines]
    np.testing.assert_allclose(read_cells(path).xy_px, [[c.x, c.y] for c in theirs], atol=1e-6)


def test_a_self_crossing_outline_has_a_center_within_it(tmp_path: Path) -> None:
    bow = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]
    (center,) = read_cells(write(tmp_path / "c.geojson", collection(feature("Polygon", [bow])))).xy_px
    assert (center >= 0).all() and (center <= 10).all()


@pytest.mark.parametrize("size", [1, 7, 64])
def test_features_are_the_same_however_the_text_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(geojson, "BLOCK_CHARACTERS", size)
    for content in (QUPATH, CELLVIT, collection(), collection(*QUPATH["features"], crs={"a": [1, 23]})):
        path = write(tmp_path / "c.geojson", json.dumps(content, indent=1))
        expected = content["features"] if isinstance(content, dict) else content
        assert list(stream_features(path)) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not GeoJSON, or is cut off"),
        (json.dumps(QUPATH)[:-30], "not GeoJSON, or is cut off"),
        ("[1]", "feature 1 is no object"),
        ('{"a": 1}', "JSON without features"),
        (collection(), "no cells"),
        (collection({"type": "Feature", "geometry": None, "properties": {}}), "feature 1 has no geometry"),
        (collection(feature("Polygon", [])), "geometry without coordinates"),
        (collection(feature("Polygon", [[[0, 0], [1, 1]]])), "ring of 2 vertices"),
        (collection(feature("Polygon", [[[0, 0], ["a", 1], [2, 2]]])), "no number"),
        (collection(feature("Point", [float("nan"), 1])), "not finite"),
        (collection(feature("Point", [1e300, 1])), "not finite or too large"),
        (collection(feature("LineString", [[0, 0], [1, 1]])), "is a LineString"),
        (collection({"type": "Feature", "geometry": {"type": "GeometryCollection", "geometries": []}}),
         "is a GeometryCollection"),
        (collection(*(feature("Point", [x, 1], id="a") for x in (1, 2))), "two cells have the id"),
        ("[" * 100_000, "nests too deep"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused_by_feature(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(SectionError, match=words):
        read_cells(write(tmp_path / "c.geojson", content))


@quick
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.geojson"
    path.write_bytes(json.dumps(QUPATH).encode()[: len(junk) * 9] + junk)
    for read in (read_cells, read_regions):
        with pytest.raises(SectionError, match=r"junk\.geojson"):
            read(path)


# Regions


@quick
@given(st.data())
def test_points_are_inside_as_shapely_says(data: st.DataObject) -> None:
    number = st.integers(0, 40)
    rings = data.draw(
        st.lists(
            st.lists(st.tuples(number, number), min_size=3, max_size=9, unique=True), min_size=1, max_size=4
        )
    )
    xy = np.random.default_rng(data.draw(st.integers(0, 99))).uniform(0, 40, (200, 2))
    polygons = [shapely.Polygon(ring) for ring in rings]
    valid = [polygon for polygon in polygons if polygon.is_valid]
    ours = in_regions(xy, [(np.asarray(polygon.exterior.coords, np.float64),) for polygon in valid])
    theirs = shapely.contains_xy(shapely.union_all(valid), xy[:, 0], xy[:, 1]) if valid else ours & False
    np.testing.assert_array_equal(ours, theirs)


def test_holes_multipolygons_and_overlaps(tmp_path: Path) -> None:
    overlapping = [[[15, 25], [100, 25], [100, 28], [15, 28]]]
    multi = feature("MultiPolygon", [[[[200, 0], [210, 0], [210, 10], [200, 10]]], overlapping])
    path = write(tmp_path / "r.geojson", collection(feature("Polygon", [SQUARE, HOLE]), multi))
    points = np.array([[11, 21], [15, 24], [16, 26], [29, 27], [205, 5], [205, 15], [50, 27]], np.float64)
    assert in_regions(points, read_regions(path)).tolist() == [True, False, True, True, True, False, True]


def test_regions_in_collections_count(tmp_path: Path) -> None:
    far = {"type": "Polygon", "coordinates": [[[200, 0], [210, 0], [210, 10], [200, 10]]]}
    line = {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}
    square = {"type": "Polygon", "coordinates": [SQUARE]}
    nested = {"type": "GeometryCollection", "geometries": [far]}
    both = {"type": "GeometryCollection", "geometries": [square, line, nested]}
    points = np.array([[11, 21], [205, 5], [100, 5]], np.float64)
    for content in (both, {"type": "Feature", "geometry": both, "properties": {}}):
        path = write(tmp_path / "r.geojson", content)
        assert in_regions(points, read_regions(path)).tolist() == [True, True, False]
    for _ in range(20):
        both = {"type": "GeometryCollection", "geometries": [both]}
    for content in (both, {"type": "GeometryCollection", "geometries": [3]}):
        with pytest.raises(SectionError, match="feature 1 has a collection"):
            read_regions(write(tmp_path / "r.geojson", content))


def test_cells_beside_annotations_are_no_regions(tmp_path: Path) -> None:
    tissue = feature("Polygon", [SQUARE], properties={"objectType": "annotation"})
    cells = [
        feature("Polygon", [ellipse(200, y, 9, 9, 0)], properties={"objectType": "cell"}) for y in (0, 50)
    ]
    points = np.array([[11, 21], [200, 0], [200, 50]], np.float64)
    for content, expected in (
        (collection(cells[0], tissue, cells[1]), [True, False, False]),
        (collection(*cells), [False, True, True]),
    ):
        path = write(tmp_path / "r.geojson", content)
        assert in_regions(points, read_regions(path)).tolist() == expected


def test_a_self_crossing_region_follows_the_even_odd_rule() -> None:
    turn = np.pi / 2 + np.arange(5) * 4 * np.pi / 5
    star = np.column_stack([np.cos(turn), np.sin(turn)])
    points = np.array([[0.0, 0.0], [0.0, 0.8], [0.0, -0.8]])
    assert in_regions(points, [(star,)]).tolist() == [False, True, False]


def test_a_region_of_many_vertices_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "r.geojson", collection(feature("Polygon", [ellipse(0, 0, 5, 5, 0, n=200)])))
    assert len(read_regions(path)[0][0]) == 201
    monkeypatch.setattr(geojson, "MAX_VERTICES", 200)
    with pytest.raises(SectionError, match="more than 200 vertices"):
        read_regions(path)


def test_a_cell_of_many_vertices_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "c.geojson", collection(feature("Polygon", [ellipse(40, 30, 5, 5, 0, n=2000)])))
    monkeypatch.setattr(geojson, "BLOCK_CHARACTERS", 1000)
    np.testing.assert_allclose(read_cells(path).xy_px, [[40, 30]], atol=0.01)
    monkeypatch.setattr(geojson, "MAX_FEATURE_CHARACTERS", 20_000)
    with pytest.raises(SectionError, match="one feature takes more than 0 MB; split it"):
        read_cells(path)


def test_points_and_lines_are_no_region(tmp_path: Path) -> None:
    with pytest.raises(SectionError, match="there is no polygon"):
        read_regions(write(tmp_path / "r.geojson", collection(feature("Point", [1, 2]))))
