"""`--seurat`: Space Ranger's layout, read back by scanpy and squidpy, held against what Seurat reads."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from PIL import Image
from seurat_reader import as_character, load_10x_spatial, type_convert
from synthetic_maps import DIAMETER, SCALE, SyntheticMap, synthetic_map

from mclst.runtime.cli.report import main
from mclst.runtime.errors import OutputError
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.report.export import seurat


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticMap:
    made = synthetic_map(tmp_path_factory.mktemp("seurat") / "made.h5ad")
    done = CliRunner().invoke(main, [str(made.path), "--no-html", "--seurat"])
    assert done.exit_code == 0 and done.stdout.strip() == str(folder_of(made)), done.output
    return made


def folder_of(made: SyntheticMap) -> Path:
    return made.path.with_suffix(".seurat")


def test_scanpy_and_squidpy_read_the_maps_values(made: SyntheticMap) -> None:
    scanpy, squidpy = pytest.importorskip("scanpy"), pytest.importorskip("squidpy")
    known = ~np.isnan(made.expression).all(axis=1)
    assert (~known).sum() == 1  # a tile that could not be read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        readers = [scanpy.read_visium, squidpy.read.visium]
        for data in [read(folder_of(made)) for read in readers]:
            assert data.obs_names.tolist() == np.array(made.spots)[known].tolist()
            assert data.var_names.tolist() == made.genes
            np.testing.assert_array_equal(data.X.toarray(), made.expression[known])
            np.testing.assert_allclose(data.obsm["spatial"], made.xy_px[known], atol=0.006)
            (library,) = data.uns["spatial"].values()
            factors = library["scalefactors"]
            assert factors["tissue_hires_scalef"] == pytest.approx(SCALE)
            assert factors["spot_diameter_fullres"] == DIAMETER
            lowres, hires = (library["images"][size] for size in ("lowres", "hires"))
            share = factors["tissue_lowres_scalef"] / factors["tissue_hires_scalef"]
            assert lowres.shape[1] / hires.shape[1] == pytest.approx(share)


def test_seurat_loads_the_maps_values(made: SyntheticMap) -> None:
    """By its R code, followed step by step."""
    loaded = load_10x_spatial(folder_of(made))
    known = ~np.isnan(made.expression).all(axis=1)
    assert loaded.cells == np.array(made.spots)[known].tolist() and loaded.features == made.genes
    np.testing.assert_array_equal(loaded.counts.toarray().T, made.expression[known])
    np.testing.assert_allclose(loaded.xy, made.xy_px[known], atol=0.006)
    assert all(math.isfinite(value) and value > 0 for value in loaded.factors.values())
    assert loaded.factors["spot"] == DIAMETER and loaded.factors["hires"] == pytest.approx(SCALE)
    assert loaded.image.ndim == 3 and loaded.image.shape[2] == 3 and max(loaded.image.shape) <= 600
    height, width = (size / loaded.factors["lowres"] for size in loaded.image.shape[:2])
    assert (loaded.xy < (width, height)).all()
    spatial = folder_of(made) / "spatial"
    table = pd.read_csv(spatial / "tissue_positions.csv")
    assert table.barcode.tolist() == made.spots and table.in_tissue.tolist() == known.astype(int).tolist()


def test_spatialdata_io_reads_the_folder_as_visium(made: SyntheticMap) -> None:
    spatialdata_io = pytest.importorskip("spatialdata_io")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = spatialdata_io.visium(folder_of(made), dataset_id="made")
    known = ~np.isnan(made.expression).all(axis=1)
    np.testing.assert_array_equal(store["table"].X.toarray(), made.expression[known])
    centers = store["made"].geometry
    np.testing.assert_allclose(np.c_[centers.x, centers.y], made.xy_px[known], atol=0.006)
    assert store["made"].radius.unique().tolist() == [DIAMETER / 2]
    assert {"made_hires_image", "made_lowres_image"} <= set(store.images)


@pytest.mark.parametrize(
    ("names", "prefixed"),
    [
        (["1", "2", "3"], True),
        (["007", "1e5", "0x1F"], True),
        (["0x0", "0x1", "1.5"], True),
        (["a1", "NA", "b2"], True),
        (["T", "F", "true"], True),
        (["0x0", "1x0", "2x0"], False),
        (["AAAC-1", "1", "2"], False),
        (['say "x"', "a,b", "2"], False),
    ],
)
def test_names_come_back_from_the_table_as_they_are(tmp_path: Path, names: list[str], prefixed: bool) -> None:
    import anndata

    made = synthetic_map(tmp_path / "made.h5ad", side=2, genes=2)
    data = anndata.read_h5ad(made.path)[:3]  # the last has no tile
    data = data[~np.isnan(data.X).all(axis=1)].copy()
    data.obs_names = names[: data.n_obs]
    data.write_h5ad(made.path)
    done = CliRunner().invoke(main, [str(made.path), "--no-html", "--seurat"])
    assert done.exit_code == 0 and ("begin with spot-" in done.stderr) == prefixed, done.output
    expected = [("spot-" if prefixed else "") + name for name in data.obs_names]
    loaded = load_10x_spatial(folder_of(made))
    assert loaded.cells == expected
    np.testing.assert_allclose(loaded.xy, data.obsm["spatial"], atol=0.006)
    positions = pd.read_csv(folder_of(made) / "spatial/tissue_positions.csv", index_col=0)  # as scanpy does
    assert positions.index.tolist() == expected


@quick
@given(
    st.lists(
        st.text("019.eExXafFpnNATt-+ i\"',", min_size=1, max_size=4), min_size=1, max_size=4, unique=True
    )
)
def test_any_names_come_back(names: list[str]) -> None:
    written = seurat.spot_names(names)
    text = pd.DataFrame({"barcode": written, "x": 1}).to_csv(index=False)
    rows = list(csv.reader(io.StringIO(text)))[1:]
    assert [as_character(value) for value in type_convert([row[0] for row in rows])] == written
    assert pd.read_csv(io.StringIO(text), index_col=0).index.tolist() == written


def test_genes_that_seurat_makes_equal_are_told(tmp_path: Path) -> None:
    import anndata

    made = synthetic_map(tmp_path / "made.h5ad", side=2, genes=3)
    data = anndata.read_h5ad(made.path)
    data.var_names = ["Y_RNA", "Y-RNA", "TP53"]
    data.write_h5ad(made.path)
    done = CliRunner().invoke(main, [str(made.path), "--no-html", "--seurat"])
    assert done.exit_code == 0 and "1 names of made.seurat are there twice, such" in done.stderr
    with pytest.raises(AssertionError):
        load_10x_spatial(folder_of(made))


@pytest.mark.parametrize("shape", [(1900, 37), (37, 1900)])
def test_spots_of_an_elongated_slide_lie_within_a_pixel_of_their_place(
    made: SyntheticMap, tmp_path: Path, shape: tuple[int, int]
) -> None:
    image = np.full((*shape, 3), 255, np.uint8)
    row, column = np.array(shape) - 9
    image[row : row + 3, column : column + 3] = 0  # of the full slide the pixels at 10 times that place
    with open_map(made.path) as expression_map:
        changed = dataclasses.replace(expression_map, image=image)
        seurat.write_seurat(changed, tmp_path / "long.seurat", overwrite=False)
    loaded = load_10x_spatial(tmp_path / "long.seurat")
    darkness = (
        255.0 - np.asarray(Image.open(tmp_path / "long.seurat/spatial/tissue_lowres_image.png"))[..., 0]
    )
    seen = [
        float((darkness.sum(axis=1 - axis) @ np.arange(darkness.shape[axis])) / darkness.sum()) + 0.5
        for axis in (0, 1)
    ]
    expected = (np.array([row, column]) + 1.5) / SCALE * loaded.factors["lowres"]
    np.testing.assert_allclose(seen, expected, atol=0.5)


def test_blocks_do_not_matter(made: SyntheticMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seurat, "BLOCK_BYTES", 1)
    monkeypatch.setattr(seurat, "CHECKED_AT_ONCE", 7)
    with open_map(made.path) as expression_map:
        assert seurat.write_seurat(expression_map, tmp_path / "a", overwrite=False) == ()
    with (
        h5py.File(tmp_path / "a" / seurat.MATRIX) as one,
        h5py.File(folder_of(made) / seurat.MATRIX) as other,
    ):
        for name in ("data", "indices", "indptr", "shape"):
            np.testing.assert_array_equal(one["matrix"][name][:], other["matrix"][name][:])


def test_what_a_disk_changed_is_not_published(
    made: SyntheticMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = seurat._check

    def spoilt(path: Path, sums: dict[str, int]) -> None:
        with h5py.File(path, "r+") as file:
            file["matrix/data"][3] += 1
        check(path, sums)

    monkeypatch.setattr(seurat, "_check", spoilt)
    with open_map(made.path) as expression_map, pytest.raises(OutputError, match="reads back wrong"):
        seurat.write_seurat(expression_map, tmp_path / "a", overwrite=False)
    assert not list(tmp_path.iterdir())


def test_only_a_folder_of_this_kind_is_replaced(made: SyntheticMap, tmp_path: Path) -> None:
    out = ["--no-html", "--seurat", "--out", str(tmp_path / "made")]
    assert CliRunner().invoke(main, [str(made.path), *out]).exit_code == 0
    assert CliRunner().invoke(main, [str(made.path), *out]).exit_code == 5
    assert CliRunner().invoke(main, [str(made.path), *out, "--overwrite"]).exit_code == 0
    (tmp_path / "made.seurat" / seurat.MARK).unlink()
    done = CliRunner().invoke(main, [str(made.path), *out, "--overwrite"])
    assert done.exit_code == 5 and "is not overwritten" in done.stderr


def test_ensembl_ids_and_array_places_of_the_map_are_kept(tmp_path: Path) -> None:
    import anndata

    made = synthetic_map(tmp_path / "made.h5ad", side=3, genes=3)
    data = anndata.read_h5ad(made.path)
    data.var["ensembl_id"] = ["ENSG00000141510", "", "ENSG00000136997"]
    data.obs["array_row"], data.obs["array_col"] = np.arange(9) // 3, np.arange(9) % 3
    data.write_h5ad(made.path)
    assert CliRunner().invoke(main, [str(made.path), "--no-html", "--seurat"]).exit_code == 0
    with h5py.File(tmp_path / "made.seurat" / seurat.MATRIX) as file:
        ids = file["matrix/features/id"][:].astype(str).tolist()
    assert ids == ["ENSG00000141510", made.genes[1], "ENSG00000136997"]
    table = pd.read_csv(tmp_path / "made.seurat/spatial/tissue_positions.csv")
    assert table.array_row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
