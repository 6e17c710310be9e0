"""Exports of a map, read back by the programs they are for: QuPath, GDAL, spatialdata, pandas."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from synthetic_maps import DIAMETER, SCALE, SyntheticMap, synthetic_map

from mclst.runtime.cli.report import main
from mclst.runtime.expression_map.morans_i import morans_i
from mclst.runtime.expression_map.reader import open_map


def report(*words: str) -> Result:
    return CliRunner().invoke(main, ["made.h5ad", *words])


def square_of(feature: dict[str, Any]) -> tuple[float, float, float, float]:
    (ring,) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1] and len(ring) == 5
    x, y = np.array(ring).T
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


@pytest.mark.parametrize("grid", [False, True])
def test_geojson_has_the_fields_of_qupath_detections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    made = synthetic_map(tmp_path / "made.h5ad", grid=grid)
    done = report("--no-html", "--geojson", "--geojson-genes", "GENE5,GENE0")
    assert done.exit_code == 0 and done.stdout == "made.geojson\n", done.output
    lines = Path("made.geojson").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(made.spots) + 2
    collection = json.loads("\n".join(lines))
    assert collection["type"] == "FeatureCollection" and len(collection["features"]) == len(made.spots)
    assert len({feature["id"] for feature in collection["features"]}) == len(made.spots)
    for i, feature in enumerate(collection["features"]):
        properties, measured = feature["properties"], feature["properties"]["measurements"]
        assert feature["type"] == "Feature" and properties["objectType"] == "detection"
        assert properties["name"] == made.spots[i]
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", feature["id"])
        assert feature["geometry"].get("isEllipse", False) is not grid
        side = DIAMETER / 2
        corners = (*(made.xy_px[i] - side), *(made.xy_px[i] + side))
        assert square_of(feature) == pytest.approx(corners, abs=0.01)
        assert list(measured) == ["GENE5", "GENE0", "nearest_distance", "effective_k"]
        if i == len(made.spots) // 2:
            assert measured["GENE5"] == "NaN"
        else:
            assert measured["GENE5"] == pytest.approx(float(made.value("GENE5")[i]), rel=1e-6)
            assert all(isinstance(value, float) for value in measured.values())


@pytest.mark.slow
def test_geojson_is_read_by_gdal(made: SyntheticMap) -> None:
    import geopandas

    assert report("--no-html", "--geojson", "-q").exit_code == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # level-0 px are no degrees, as GDAL takes them for
        frame = geopandas.read_file("made.geojson").set_crs(None, allow_override=True)
    assert len(frame) == len(made.spots) and (frame["objectType"] == "detection").all()
    assert frame.geometry.is_valid.all()
    np.testing.assert_allclose(
        np.stack([frame.geometry.centroid.x, frame.geometry.centroid.y], 1), made.xy_px, atol=0.01
    )
    measured = frame["measurements"].iloc[0]
    measured = json.loads(measured) if isinstance(measured, str) else measured
    moran = morans_i(made.expression, made.xy_px)
    assert list(measured)[:12] == [made.genes[g] for g in np.argsort(-moran)]


def drawn_by_spatialdata_plot(store: Any) -> float:
    """The part of its picture of tissue and spots that has color, as only the spots have."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401 - adds `pl`

    layers = store.pl.render_images("tissue").pl.render_shapes(
        "spots", color="GENE0", table_name="expression"
    )
    layers.pl.show(coordinate_systems="global", colorbar=False)
    plt.savefig("drawn.png")
    plt.close("all")
    pixels = np.asarray(Image.open("drawn.png").convert("RGB")).astype(int)
    return float((pixels.max(axis=2) - pixels.min(axis=2) > 60).mean())


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.slow
def test_the_store_is_read_back_by_spatialdata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    made = synthetic_map(tmp_path / "made.h5ad", grid=grid)
    done = report("--no-html", "--spatialdata")
    assert done.exit_code == 0 and done.stdout == "made.zarr\n", done.output
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spatialdata
        from spatialdata import get_centroids, get_extent, join_spatialelement_table

        store = spatialdata.read_zarr("made.zarr")
        table = store.tables["expression"]
        np.testing.assert_array_equal(table.X, made.expression)
        assert list(table.obs_names) == made.spots and list(table.var_names) == made.genes
        np.testing.assert_allclose(table.obs["nearest_distance"], made.nearest)
        assert table.uns["mclst"]["bundle"]["system"] == "mclstexp"
        centers = get_centroids(store.shapes["spots"]).compute()
        np.testing.assert_allclose(centers[["x", "y"]].to_numpy(), made.xy_px)
        extent = get_extent(store.shapes["spots"])
        assert extent["x"] == pytest.approx((made.xy_px[:, 0].min() - 30, made.xy_px[:, 0].max() + 30))
        image = get_extent(store.images["tissue"])
        with open_map(made.path) as expression_map:
            assert image["x"][1] == pytest.approx(expression_map.image.shape[1] / SCALE)
            pixels = np.moveaxis(np.asarray(store.images["tissue"].data), 0, 2)
            np.testing.assert_array_equal(pixels, expression_map.image)
        if not grid:
            assert drawn_by_spatialdata_plot(store) > 0.03
        shapes, joined = join_spatialelement_table(store, "spots", table_name="expression")
        assert len(shapes["spots"]) == joined.n_obs == len(made.spots)
    assert report("--no-html", "--spatialdata").exit_code == 5
    assert report("--no-html", "--spatialdata", "--overwrite").exit_code == 0
    shutil.rmtree("made.zarr")
    Path("made.zarr").mkdir()
    Path("made.zarr/mine.txt").write_text("not a store")
    assert report("--no-html", "--spatialdata", "--overwrite").exit_code == 5
    assert os.listdir("made.zarr") == ["mine.txt"]


def with_columns(made: SyntheticMap, columns: dict[str, Any], genes: tuple[str, ...] = ()) -> pd.DataFrame:
    """The map with these columns of `obs`, and its first genes called so; returned as it reads them."""
    data = anndata.read_h5ad(made.path)
    for name, values in columns.items():
        data.obs[name] = values
    data.var_names = [*genes, *made.genes[len(genes) :]]
    data.write_h5ad(made.path)
    return data.obs


@pytest.mark.slow
def test_the_store_keeps_columns_whose_names_spatialdata_refuses(
    made: SyntheticMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "Centroid X µm": "Centroid_X_µm",
        "Nucleus: Area (µm^2)": "Nucleus_Area_µm_2",
        "cell type": "cell_type",
        "Cell_Type": "Cell_Type_2",
        "region": "region_2",
        "spot_id": "spot_id_2",
        "Region": "Region_3",
        "__private": "private",
        "%": "column",
        "ä" * 300: "ä" * 100,
        "fine.name-2": "fine.name-2",
    }
    given = with_columns(made, {name: np.arange(len(made.spots)) + i for i, name in enumerate(names)})
    done = report("--no-html", "--spatialdata")
    assert done.exit_code == 0, done.output
    assert "10 columns are renamed in made.zarr, as spatialdata needs: Centroid X µm to" in done.stderr
    table = anndata.read_zarr("made.zarr/tables/expression")
    for name, other in names.items():
        np.testing.assert_array_equal(table.obs[other], given[name], err_msg=name)
    assert (table.obs["region"] == "spots").all()
    np.testing.assert_array_equal(table.obs["spot_id"], np.arange(len(made.spots)))

    shutil.rmtree("made.zarr")
    monkeypatch.setattr("mclst.runtime.report.export.spatialdata_store.column_names", list)
    done = report("--no-html", "--spatialdata")
    assert done.exit_code == 5 and "spatialdata refuses it (" in done.stderr, done.output
    assert len(done.stderr.strip().splitlines()) == 1 and not Path("made.zarr").exists()


def test_columns_and_genes_of_any_name_are_exported(made: SyntheticMap) -> None:
    texts = dict.fromkeys(("expected_error", "distance_percentile", "outside", "array_row", "x_px"), "text")
    with_columns(made, {**texts, "cell type": 1, "spot": 2}, ("$\\foo$", "a\nb", "A&B<c>", "x_px", "=1"))
    words = "--html --geojson --seurat --csv --plot GENE9,a\nb,$\\foo$ --overwrite"
    done = report(*words.split(" "))
    assert done.exit_code == 0, done.output
    first = json.loads(Path("made.geojson").read_text(encoding="utf-8"))["features"][0]
    measured = first["properties"]["measurements"]
    assert {"a\nb", "A&B<c>", "nearest_distance"} <= set(measured)
    assert not {"expected_error", "outside"} & set(measured)


def test_spots_outside_are_told_in_qupath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic_map(tmp_path / "made.h5ad", calibrated=True)
    assert report("--no-html", "--geojson").exit_code == 0
    features = json.loads(Path("made.geojson").read_text(encoding="utf-8"))["features"]
    assert [feature["properties"]["measurements"]["outside"] for feature in features] == [1] * 9 + [0] * 72


@pytest.mark.slow
def test_the_store_keeps_what_a_calibrated_map_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic_map(tmp_path / "made.h5ad", calibrated=True)
    given = anndata.read_h5ad("made.h5ad")
    given.var["gene ids"] = [f"ENSG{g}" for g in range(given.n_vars)]
    given.write_h5ad("made.h5ad")
    done = report("--no-html", "--spatialdata")
    assert "1 column is renamed in made.zarr, as spatialdata needs: gene ids to gene_ids" in done.stderr
    table = anndata.read_zarr("made.zarr/tables/expression")
    for name in ("low", "high"):
        np.testing.assert_array_equal(table.layers[name], given.layers[name])
    pd.testing.assert_frame_equal(table.var, given.var.rename(columns={"gene ids": "gene_ids"}))


@pytest.mark.slow
def test_tables_hold_every_value(made: SyntheticMap) -> None:
    data = anndata.read_h5ad(made.path)
    data.obs["GENE3"] = np.arange(data.n_obs)  # a column called as a gene
    data.obs["region"] = pd.Categorical(["a", "b"] * 40 + ["a"])
    data.write_h5ad(made.path)
    done = report("--no-html", "--csv", "--parquet")
    assert done.exit_code == 0 and done.stdout == "made.csv\nmade.parquet\n", done.output
    for frame in (pd.read_csv("made.csv"), pd.read_parquet("made.parquet")):
        assert list(frame["spot"]) == made.spots
        np.testing.assert_allclose(frame[["x_px", "y_px"]], made.xy_px, rtol=1e-6)
        np.testing.assert_allclose(frame["nearest_distance"], made.nearest, rtol=1e-6)
        genes = [f"{g}_2" if g == "GENE3" else g for g in made.genes]
        np.testing.assert_allclose(frame[genes], made.expression, rtol=1e-6)
        assert list(frame["GENE3"]) == list(range(data.n_obs)) and list(frame["region"][:2]) == ["a", "b"]
    assert pd.read_parquet("made.parquet")["GENE0"].dtype == np.float32


def test_l5_formulas_are_defused_by_option(made: SyntheticMap) -> None:
    starts = ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1+1)", "\tx", "\r=1+1", "plain", "a=b"]
    data = anndata.read_h5ad(made.path)
    data.obs_names = starts + [f"spot{i}" for i in range(data.n_obs - len(starts))]
    data.var_names = ["=GENE()", *data.var_names[1:]]
    data.obs["note"] = pd.Categorical(["-2", "3"] * 40 + ["@x"])
    data.obs["number"] = -1.5
    data.write_h5ad(made.path)
    assert report("--no-html", "--csv").exit_code == 0
    raw = [line.split(",") for line in Path("made.csv").read_bytes().decode().split("\n")[:-1]]
    assert report("--no-html", "--csv", "--csv-escape", "--overwrite").exit_code == 0
    with Path("made.csv").open(newline="", encoding="utf-8") as file:
        defused = list(csv.reader(file))
    spots = [row[0] for row in raw[1:9]]
    assert spots == starts and "=GENE()" in raw[0]
    assert [row[0] for row in defused[1:9]] == [f"'{name}" for name in starts[:6]] + starts[6:]
    # Nothing else differs, and numbers stay numbers.
    for before, after in zip(raw, defused, strict=True):
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            assert new in (old, f"'{old}")
    column = raw[0].index("number")
    assert "'=GENE()" in defused[0] and {row[column] for row in defused[1:]} == {"-1.5"}
    note = raw[0].index("note")
    assert {row[note] for row in defused[1:]} == {"'-2", "3", "'@x"}


def test_tables_are_written_in_blocks(made: SyntheticMap, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    assert report("--no-html", "--csv", "--parquet", "-q").exit_code == 0
    whole = Path("made.csv").read_bytes(), pd.read_parquet("made.parquet")
    monkeypatch.setattr("mclst.runtime.report.export.tables.BLOCK_BYTES", 8 * 12 * 7)
    assert report("--no-html", "--csv", "--parquet", "-q", "--overwrite").exit_code == 0
    assert Path("made.csv").read_bytes() == whole[0]
    pd.testing.assert_frame_equal(pd.read_parquet("made.parquet"), whole[1])


@pytest.mark.slow
def test_figures_are_for_print(made: SyntheticMap) -> None:
    done = report("--no-html", "--plot", "GENE1, GENE4")
    assert done.exit_code == 0 and done.stdout == "made.plot.png\n", done.output
    with Image.open("made.plot.png") as picture:
        assert picture.size[0] == pytest.approx(13.33 * 300, abs=2)
        assert picture.info["dpi"][0] == pytest.approx(300, abs=1)
    assert report("--no-html", "--plot", "GENE1", "--plot-format", "pdf").exit_code == 0
    pdf = Path("made.plot.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf  # letters as letters, TrueType
    assert report("--no-html", "--plot", "GENE1", "--plot-format", "svg").exit_code == 0
    svg = Path("made.plot.svg").read_text()
    assert ">GENE1<" in svg and ">GENE4<" not in svg and "µm<" in svg
