"""SpatialData stores as sections, against spatialdata's own reader and transformations."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from section_folders import spatialdata_store

from mclst.runtime.slide.open import open_slide
from mclst.sections import Section, SectionError, find_sections, read_section
from mclst.sections.formats.images import with_images
from mclst.sections.formats.ngff import coordinate_systems
from mclst.sections.formats.section_spots import section_spots
from mclst.sections.location import slide_location

pytest.importorskip("spatialdata")
pytest.importorskip("pyarrow")


def read(path: Path, bins: str | None = None) -> Section:
    (source,) = find_sections(path, bins).values()
    return read_section(source)


def image_px(store: Any, element: str = "spots", image: str = "he") -> np.ndarray:
    """Centers of the instances of the table's rows in px of an image, by spatialdata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spatialdata import get_centroids
        from spatialdata.transformations import get_transformation

        centers = get_centroids(store[element], coordinate_system="global").compute()
        to_global = get_transformation(store[image], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    obs = next(iter(store.tables.values())).obs
    xy = centers.loc[obs["shape"][obs["region"] == element], ["x", "y"]].to_numpy()
    return (np.column_stack([xy, np.ones(len(xy))]) @ np.linalg.inv(to_global).T)[:, :2]


@pytest.fixture(scope="module")
def circles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("circles") / "P1.zarr"
    return path, spatialdata_store(path)


@pytest.fixture
def P1(circles: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(circles[0], tmp_path / "P1.zarr"))


@pytest.mark.parametrize(
    ("kind", "old"),
    [("polygons", True), ("geoarrow", False), ("oldest", True), ("labels", False), ("multiscale", True),
     ("points", False)],
)  # fmt: skip
def test_every_element_that_a_table_annotates_is_read_as_spatialdata_reads_it(
    tmp_path: Path, kind: str, old: bool
) -> None:
    store = spatialdata_store(tmp_path / "P1.zarr", kind, old=old)
    assert (tmp_path / "P1.zarr" / (".zgroup" if old else "zarr.json")).is_file()
    section = read(tmp_path / "P1.zarr")
    assert section.image == tmp_path / "P1.zarr/images/he"
    np.testing.assert_allclose(section.xy_px, image_px(store), atol=1e-6)  # type: ignore[arg-type]


def test_a_section_has_the_tables_counts_and_names(circles: tuple[Path, Any]) -> None:
    path, store = circles
    section, table = read(path), store["table"]
    assert section.name == "P1" and section.spot.tolist() == table.obs_names.tolist()
    np.testing.assert_array_equal(section.counts.toarray(), table.X.toarray())
    assert section.synonyms["ENSG00000000002"] == 2
    np.testing.assert_allclose(section.xy_px, image_px(store), atol=1e-6)  # type: ignore[arg-type]


def test_a_table_of_several_elements_is_as_many_sections(tmp_path: Path) -> None:
    store = spatialdata_store(tmp_path / "S.zarr", regions=("left", "right"))
    sources = find_sections(tmp_path)
    assert list(sources) == ["S_left", "S_right"]
    for region, rows in (("left", slice(0, 8)), ("right", slice(8, 16))):
        section = read_section(sources[f"S_{region}"])
        assert section.spot.tolist() == store["table"].obs_names[rows].tolist()
        np.testing.assert_array_equal(section.counts.toarray(), store["table"].X.toarray()[rows])
        np.testing.assert_allclose(section.xy_px, image_px(store, region), atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(SectionError, match="annotates left, right; give a store of one of them"):
        section_spots(tmp_path / "S.zarr")


def test_a_folder_of_stores_and_a_slide_of_ones_own(circles: tuple[Path, Any], P1: Path) -> None:
    shutil.copytree(P1, P1.with_name("P2.zarr"))
    sources = find_sections(P1.parent)
    assert list(sources) == ["P1", "P2"]
    slide = P1.parent / "slide.svs"
    slide.touch()
    # In `global`, which the image of the store reaches by 2 x + 3 and 2 y - 5.
    expected = image_px(circles[1]) * 2 + [3, -5]
    for given in (slide, slide_location("https://host/P2.svs")):
        section = read_section(with_images(sources, {"P2": given})["P2"])
        assert section.image == given
        np.testing.assert_allclose(section.xy_px, expected, atol=1e-6)  # type: ignore[arg-type]


def test_spots_are_in_pixels_of_the_slide_that_is_given(tmp_path: Path) -> None:
    """A store as spatialdata-io's Visium with a small picture, whose system alone is shared."""
    store, full_px = visium_store(tmp_path / "V.zarr", {"hires": 3})
    assert read(store).image == store / "images/hires"
    (tmp_path / "link").symlink_to(store)
    for slide, scale in (
        (tmp_path / "slide.svs", 1.0),
        (slide_location("https://host/slide.svs"), 1.0),
        (store / "images/hires", 0.1),
        (tmp_path / "link/images/hires", 0.1),
        (None, 0.1),
    ):
        spots = section_spots(store, slide)
        assert spots is not None
        np.testing.assert_allclose(spots.xy_px, full_px * scale)


def test_an_image_that_no_slide_can_have_is_not_chosen(tmp_path: Path) -> None:
    """Of four channels, though it is the largest."""
    store, full_px = visium_store(tmp_path / "V.zarr", {"rgba": 4, "rgb": 3})
    image = read(store).image
    assert image == store / "images/rgb"
    with open_slide(image) as slide:
        assert (slide.width_px, slide.height_px) == (700, 730)
    shutil.rmtree(store / "images/rgb")
    alone = read(store)
    assert alone.image is None
    np.testing.assert_array_equal(alone.xy_px, full_px)  # type: ignore[arg-type]


def visium_store(path: Path, images: dict[str, int]) -> tuple[Path, np.ndarray]:
    """A store of three spots, in full-resolution px of `global`, and images [channels] at a tenth of it."""
    import anndata
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale

    full_px = np.array([[1000.0, 2000], [3000, 4000], [5000, 6000]])
    to = {"global": Identity(), "downscaled": Scale([0.1, 0.1], axes=("x", "y"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ShapesModel.parse(full_px, geometry=0, radius=50.0, index=np.arange(3), transformations=to)
        pictures = {
            name: Image2DModel.parse(
                np.zeros((channels, 700 + 10 * channels, 700), np.uint8),
                dims=("c", "y", "x"),
                transformations={"downscaled": Identity()},
            )
            for name, channels in images.items()
        }
        obs = pd.DataFrame({"region": pd.Categorical(["spots"] * 3), "shape": np.arange(3)}, list("abc"))
        table = TableModel.parse(
            anndata.AnnData(np.ones((3, 2), np.float32), obs=obs),
            region="spots",
            region_key="region",
            instance_key="shape",
        )
        SpatialData(images=pictures, shapes={"spots": shapes}, tables={"table": table}).write(path)
    return path, full_px


def test_several_tables_are_chosen_by_the_size_in_their_name(tmp_path: Path) -> None:
    store = spatialdata_store(tmp_path / "P1.zarr", tables=("square_008um", "square_016um"))
    for bins, name in ((None, "square_008um"), ("8", "square_008um"), ("16", "square_016um")):
        np.testing.assert_array_equal(
            read(tmp_path / "P1.zarr", bins).counts.toarray(), store[name].X.toarray()
        )
    with pytest.raises(SectionError, match="there are tables square_008um, square_016um; choose one"):
        find_sections(tmp_path / "P1.zarr", "2")
    with pytest.raises(SectionError, match="choose one by the µm in its name"):
        find_sections(tmp_path / "P1.zarr", "²")


def test_stores_that_do_not_fit_are_refused(P1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(SectionError, match="the metadata take more than"):
        patch.setattr("mclst.sections.zarr_arrays.MAX_METADATA_BYTES", 100)
        find_sections(P1)
    attributes = P1 / "tables/table/zarr.json"
    fine = attributes.read_text()
    region = '"region": [\n      "spots"\n    ]'
    assert region in fine
    for old, new, words in (
        (region, '"region": "cell_labels"', r"annotates cell_labels, which is no .* \(shapes/spots\)"),
        (region, '"region": ["a", "b"]', "annotates a, which is no element"),
        (region, '"region": null', "no table annotates shapes, labels or points"),
        (region, '"region": "../../secret"', "no element of shapes"),
        ('"instance_key": "shape"', '"instance_key": "cell"', "no column cell with the instances"),
        ("{", "[", "cannot be read as SpatialData"),
    ):
        attributes.write_text(fine.replace(old, new))
        with pytest.raises(SectionError, match=words):
            read(P1)
    attributes.write_text(fine)
    counts = P1 / "tables/table/obs/_index/zarr.json"
    text = counts.read_text()
    counts.write_text(text.replace('"shape": [\n    8', '"shape": [\n    800000000000'))
    assert counts.read_text() != text
    with pytest.raises(SectionError, match=r"declare [\d,]+ bytes in files of"):
        read(P1)
    counts.write_text(text)
    chunk = P1 / "tables/table/X/data/c/0"
    content = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(SectionError, match="1 of 1 chunks of X/data are missing; copy the store again"):
        read(P1)
    chunk.write_bytes(content)
    (P1 / "tables/table/X/linked").symlink_to("/etc/hostname")
    with pytest.raises(SectionError, match="is a link"):
        read(P1)


def test_consolidated_metadata_do_not_replace_those_that_were_checked(P1: Path) -> None:
    import zarr

    counts = read(P1).counts.toarray()
    table = P1 / "tables/table"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(table)
    path = table / "zarr.json"
    text = path.read_text()
    assert text.count('"name": "zstd"') > 1
    path.write_text(text.replace('"name": "zstd"', '"name": "numcodecs.lzma"'))
    np.testing.assert_array_equal(read(P1).counts.toarray(), counts)


def test_a_chunk_of_a_table_that_unpacks_to_too_much_is_refused(P1: Path) -> None:
    import numcodecs

    (P1 / "tables/table/X/data/c/0").write_bytes(numcodecs.Zstd().encode(bytes(64 << 20)))
    with pytest.raises(SectionError, match=r"c/0: a chunk unpacks to 67,108,864 bytes or more"):
        read(P1)


def test_a_sparse_table_that_leads_out_of_its_memory_is_refused(P1: Path) -> None:
    """Also where a row of another region makes a subset of it, which scipy takes unchecked."""
    import zarr

    table: Any = zarr.open_group(P1 / "tables/table", mode="r+")
    table["X/indptr"][4] = -7
    codes = table["obs/region/codes"]
    codes[0] = -1
    with pytest.raises(SectionError, match="indptr must be"):
        read(P1)


def test_offsets_of_the_oldest_shapes_that_lead_out_of_memory_are_refused(tmp_path: Path) -> None:
    import zarr

    spatialdata_store(tmp_path / "P1.zarr", "oldest", old=True)
    for name in ("offset0", "offset1"):
        offsets: Any = zarr.open_array(tmp_path / "P1.zarr/shapes/spots" / name, mode="r+")
        kept = offsets[3]
        offsets[3] = -2_000_000
        with pytest.raises(SectionError, match="offsets of its shapes do not follow one another"):
            read(tmp_path / "P1.zarr")
        offsets[3] = kept
    read(tmp_path / "P1.zarr")


def test_shapes_without_area_or_place_are_refused_or_have_a_center(P1: Path) -> None:
    import shapely
    from geopandas import read_parquet

    path = P1 / "shapes/spots/shapes.parquet"
    table = read_parquet(path)
    crossing = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])  # a bow tie, whose signed areas cancel
    for shape, words in (
        (shapely.Polygon(), "3 is at .* or empty"),
        (shapely.Point(np.nan, 1), "3 is at"),
    ):
        changed = table.copy()
        changed.loc[3, "geometry"] = shape
        changed.to_parquet(path)
        with pytest.raises(SectionError, match=words):
            read(P1)
    table[table.index != 3].to_parquet(path)
    with pytest.raises(SectionError, match="1 of 8 rows of the table have no place in it, the first is 3"):
        read(P1)
    table.loc[3, "geometry"] = crossing
    table.to_parquet(path)
    xy_px = read(P1).xy_px
    assert xy_px is not None and np.isfinite(xy_px).all()


def test_labels_that_do_not_fit_are_refused(P1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr

    shutil.rmtree(P1 / "shapes/spots")
    values = np.repeat(np.repeat(np.arange(1, 9).reshape(2, 4), 5, axis=0), 6, axis=1)
    name = {"name": "global", "axes": [{"name": "y"}, {"name": "x"}]}
    identity = {"type": "identity", "input": name, "output": name}
    multiscale: Any = {
        "axes": name["axes"],
        "datasets": [{"path": "0"}],
        "coordinateTransformations": [identity],
    }

    def write(labels: np.ndarray, **options: Any) -> None:
        shutil.rmtree(P1 / "labels", ignore_errors=True)
        group = zarr.open_group(P1 / "labels/spots", mode="w")
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
        group.create_array("0", data=labels, **options)

    write(values, chunks=(3, 7))
    with pytest.raises(SectionError, match="1 of 8 rows of the table have no place in it, the first is 0"):
        read(P1)
    write(values - 1, chunks=(3, 7), shards=(6, 14))
    y, x = np.indices(values.shape) + 0.5
    shape = instances(P1)
    expected = np.array([[x[values == s + 1].mean(), y[values == s + 1].mean()] for s in shape])
    to_image = np.array([[0.5, 0], [0, 0.5]])  # of `he`: 2 x + 3, 2 y - 5
    np.testing.assert_allclose(read(P1).xy_px, (expected - [3, -5]) @ to_image)  # type: ignore[arg-type]
    for labels, words in (
        (values.astype(np.float32), "the labels are float32"),
        (values[None], r"the labels are int64 \(1, 10, 24\)"),
    ):
        write(labels)
        with pytest.raises(SectionError, match=words):
            read(P1)
    write(values - 1)
    with monkeypatch.context() as patch, pytest.raises(SectionError, match="write the store with smaller"):
        patch.setattr("mclst.sections.formats.spatialdata_elements.BLOCK_PX", 100)
        read(P1)
    metadata = P1 / "labels/spots/0/zarr.json"
    metadata.write_text(metadata.read_text().replace("    10,", "    10000000000000,", 1))
    with pytest.raises(SectionError, match=r"arrays declare [\d,]+ bytes"):
        read(P1)


def instances(store: Path) -> list[int]:
    import zarr

    column: Any = zarr.open_array(store / "tables/table/obs/shape", mode="r")
    return [int(i) for i in column[:]]


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
