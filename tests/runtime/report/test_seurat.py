"""`--seurat`: Space Ranger's layout, read back by scanpy and squidpy, held against what Seurat reads."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
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


def test_the_layout_is_the_one_seurat_reads(made: SyntheticMap) -> None:
    """What Read10X_h5, Read10X_Image, Read10X_Coordinates and Read10X_ScaleFactors of Seurat 5 look at."""
    spatial = folder_of(made) / "spatial"
    with h5py.File(folder_of(made) / "filtered_feature_bc_matrix.h5") as file:
        assert list(file) == ["matrix"] and "PYTABLES_FORMAT_VERSION" not in file.attrs
        matrix = file["matrix"]
        assert set(matrix) == {"barcodes", "data", "features", "indices", "indptr", "shape"}
        assert set(matrix["features"]) == {"id", "name", "feature_type", "genome", "_all_tag_keys"}
        genes, spots = matrix["shape"][:]
        assert len(matrix["indptr"]) == spots + 1 and matrix["indptr"][-1] == matrix["data"].size
        assert matrix["indices"][:].max() < genes == len(matrix["features/name"])
        assert set(matrix["features/feature_type"][:]) == {b"Gene Expression"}
        barcodes = matrix["barcodes"][:].astype(str)
    (positions,) = spatial.glob("*tissue_positions*")
    table = pd.read_csv(positions)
    assert table.columns.tolist() == [
        *("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
    ]
    assert table.barcode.tolist() == made.spots
    assert table.barcode[table.in_tissue == 1].tolist() == barcodes.tolist()
    factors = json.loads((spatial / "scalefactors_json.json").read_text())
    names = (
        "spot_diameter_fullres",
        "fiducial_diameter_fullres",
        "tissue_hires_scalef",
        "tissue_lowres_scalef",
    )
    assert all(math.isfinite(factors[name]) and factors[name] > 0 for name in names)
    with Image.open(spatial / "tissue_lowres_image.png") as picture:
        assert picture.mode == "RGB" and max(picture.size) <= 600


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
