"""SpatialData stores as sections, against spatialdata's own reader and transformations."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from section_folders import spatialdata_store

from mclst.sections import Section, SectionError, find_sections, read_section
from mclst.sections.formats.images import with_images
from mclst.sections.formats.ngff import coordinate_systems

pytest.importorskip("spatialdata")
pytest.importorskip("pyarrow")


def read(path: Path, bins: str | None = None) -> Section:
    (source,) = find_sections(path, bins).values()
    return read_section(source)


def image_px(store: Any, image: str = "he") -> np.ndarray:
    """Centers of the table's shapes in px of an image, by spatialdata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spatialdata import get_centroids
        from spatialdata.transformations import get_transformation

        centers = get_centroids(store["spots"], coordinate_system="global").compute()
        to_global = get_transformation(store[image], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    table = next(iter(store.tables.values()))
    xy = centers.loc[table.obs["shape"], ["x", "y"]].to_numpy()
    return (np.column_stack([xy, np.ones(len(xy))]) @ np.linalg.inv(to_global).T)[:, :2]


@pytest.mark.parametrize(
    ("polygons", "old"), [(False, False), (True, True)], ids=["circles, zarr v3", "polygons, zarr v2"]
)
def test_a_store_of_spatialdata_is_read_as_it_reads_it(tmp_path: Path, polygons: bool, old: bool) -> None:
    store = spatialdata_store(tmp_path / "P1.zarr", polygons=polygons, old=old)
    assert (tmp_path / "P1.zarr" / (".zgroup" if old else "zarr.json")).is_file()
    section, table = read(tmp_path / "P1.zarr"), store["table"]
    assert section.name == "P1" and section.spot.tolist() == table.obs_names.tolist()
    np.testing.assert_array_equal(section.counts.toarray(), table.X.toarray())
    assert section.synonyms["ENSG00000000002"] == 2
    assert section.image == tmp_path / "P1.zarr/images/he"
    np.testing.assert_allclose(section.xy_px, image_px(store), atol=1e-6)  # type: ignore[arg-type]


def test_a_folder_of_stores_and_a_slide_of_ones_own(tmp_path: Path) -> None:
    for name in ("P1", "P2"):
        store = spatialdata_store(tmp_path / f"{name}.zarr")
    sources = find_sections(tmp_path)
    assert list(sources) == ["P1", "P2"]
    slide = tmp_path / "slide.svs"
    slide.touch()
    section = read_section(with_images(sources, {"P2": slide})["P2"])
    he = store["he"]["scale0"].image if hasattr(store["he"], "keys") else store["he"]
    assert section.image == slide and he.sizes["x"] == 140
    # In `global`, which the image of the store reaches by 2 x + 3 and 2 y - 5.
    expected = image_px(store) * 2 + [3, -5]
    np.testing.assert_allclose(section.xy_px, expected, atol=1e-6)  # type: ignore[arg-type]


def test_several_tables_are_chosen_by_the_size_in_their_name(tmp_path: Path) -> None:
    store = spatialdata_store(tmp_path / "P1.zarr", tables=("square_008um", "square_016um"))
    for bins, name in ((None, "square_008um"), ("8", "square_008um"), ("16", "square_016um")):
        np.testing.assert_array_equal(
            read(tmp_path / "P1.zarr", bins).counts.toarray(), store[name].X.toarray()
        )
    with pytest.raises(SectionError, match="there are tables square_008um, square_016um; choose one"):
        find_sections(tmp_path / "P1.zarr", "2")


def test_stores_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spatialdata_store(tmp_path / "P1.zarr")
    with monkeypatch.context() as patch, pytest.raises(SectionError, match="the metadata take more than"):
        patch.setattr("mclst.sections.formats.spatialdata_store.MAX_METADATA_BYTES", 100)
        find_sections(tmp_path / "P1.zarr")
    attributes = tmp_path / "P1.zarr/tables/table/zarr.json"
    fine = attributes.read_text()
    for old, new, words in (
        (
            '"region": "spots"',
            '"region": "cell_labels"',
            r"annotates cell_labels, which is no element .*\(spots\)",
        ),
        ('"region": "spots"', '"region": ["a", "b"]', "annotates a, b; write a store for each"),
        ('"region": "spots"', '"region": null', "no table annotates shapes"),
        ('"region": "spots"', '"region": "../../secret"', "no element of shapes"),
        ('"instance_key": "shape"', '"instance_key": "cell"', "no column cell with the index"),
        ("{", "[", "cannot be read as SpatialData"),
    ):
        attributes.write_text(fine.replace(old, new))
        with pytest.raises(SectionError, match=words):
            read(tmp_path / "P1.zarr")
    attributes.write_text(fine)
    counts = tmp_path / "P1.zarr/tables/table/obs/_index/zarr.json"
    text = counts.read_text()
    counts.write_text(text.replace('"shape": [\n    8', '"shape": [\n    800000000000'))
    assert counts.read_text() != text
    with pytest.raises(SectionError, match=r"declares [\d,]+ bytes in files of"):
        read(tmp_path / "P1.zarr")
    counts.write_text(text)
    (tmp_path / "P1.zarr/tables/table/X/linked").symlink_to("/etc/hostname")
    with pytest.raises(SectionError, match="is a link"):
        read(tmp_path / "P1.zarr")


def test_shapes_without_area_or_place_are_refused_or_have_a_center(tmp_path: Path) -> None:
    import shapely
    from geopandas import read_parquet

    spatialdata_store(tmp_path / "P1.zarr", polygons=True)
    path = tmp_path / "P1.zarr/shapes/spots/shapes.parquet"
    table = read_parquet(path)
    crossing = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])  # a bow tie, whose signed areas cancel
    for shape, words in (
        (shapely.Polygon(), "a shape is empty"),
        (shapely.Point(np.nan, 1), "is empty|is at"),
    ):
        changed = table.copy()
        changed.loc["c3", "geometry"] = shape
        changed.to_parquet(path)
        with pytest.raises(SectionError, match=words):
            read(tmp_path / "P1.zarr")
    table.loc["c3", "geometry"] = crossing
    table.to_parquet(path)
    xy_px = read(tmp_path / "P1.zarr").xy_px
    assert xy_px is not None and np.isfinite(xy_px).all()


def step(kind: str, axes: str = "xy", **values: object) -> dict[str, Any]:
    system = {"name": "global", "axes": [{"name": name} for name in axes]}
    return {"type": kind, "input": system, "output": system, **values}


def test_transformations_compose_like_matrices() -> None:
    turned = step("rotation", rotation=[0, -1, 1, 0])
    swapped = {**step("mapAxis", mapAxis={"y": "x", "x": "y"}), "output": step("x", "yx")["output"]}
    steps = [step("scale", scale=[2, 3]), turned, step("translation", translation=[5, 7]), swapped]
    matrix = coordinate_systems([step("sequence", transformations=steps)], ("x", "y"))["global"]
    # (x, y) → (2x, 3y) → (-3y, 2x) → (5 - 3y, 7 + 2x) → x takes y's value and y takes x's
    np.testing.assert_allclose(matrix @ [10, 100, 1], [27, -295, 1])
    each = [step("scale", "x", scale=[2]), step("translation", "y", translation=[4])]
    matrix = coordinate_systems([step("byDimension", transformations=each)], ("x", "y"))["global"]
    np.testing.assert_allclose(matrix @ [10, 100, 1], [20, 104, 1])


def nested(depth: int) -> dict[str, Any]:
    return step("sequence", transformations=[nested(depth - 1)] if depth else [])


@pytest.mark.parametrize(
    "item",
    [
        step("scale", scale=[0, 1]),
        step("scale", scale=[1]),
        step("scale", scale=[float("nan"), 1]),
        step("affine", affine=[[1, 0, 0], [1, 0, 0]]),
        step("affine", "cxy", affine=[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]),
        step("warp"),
        nested(20),
    ],
)
def test_transformations_without_an_inverse_are_refused(item: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="transformation"):
        coordinate_systems([item], ("x", "y"))
