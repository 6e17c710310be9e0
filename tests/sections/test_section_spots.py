"""Spots of a measured section as those to predict: the same as the section's own, on the given slide."""

from __future__ import annotations

import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from section_folders import XENIUM_PIXEL, space_ranger, spatialdata_store, visium_hd, xenium

from mclst.evaluation.baselines.gather import gather_training
from mclst.evaluation.cli import main as evaluate
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.cli.infer import main as infer
from mclst.runtime.section_options import SectionFiles
from mclst.sections import SectionError, find_sections, read_section
from mclst.sections.formats.section_spots import on_picture, section_spots
from mclst.sections.tables.spots import read_spots

pytest.importorskip("pyarrow")
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.mark.parametrize(
    ("make", "bins"), [(xenium, None), (xenium, "50/40"), (visium_hd, "16"), (visium_hd, "cells")]
)
def test_spots_are_those_of_the_section(tmp_path: Path, make: object, bins: str | None) -> None:
    folder = make(tmp_path / "P1")  # type: ignore[operator]
    (source,) = find_sections(folder, bins).values()
    section, spots = read_section(source), section_spots(folder, None, bins)
    assert spots is not None and spots.id.tolist() == section.spot.tolist() and spots.mpp == section.mpp
    np.testing.assert_array_equal(spots.xy_px, section.xy_px)
    if section.array_xy is not None:
        np.testing.assert_array_equal(spots.table[["array_col", "array_row"]], section.array_xy)


def test_a_store_has_spots_and_a_space_ranger_folder_is_read_as_a_table(tmp_path: Path) -> None:
    pytest.importorskip("spatialdata")
    spatialdata_store(tmp_path / "P2.zarr")
    spots = section_spots(tmp_path / "P2.zarr")
    assert spots is not None and spots.id[0] == "spot0"
    assert section_spots(space_ranger(tmp_path / "P3")) is None


def test_spots_without_a_place_are_refused(tmp_path: Path) -> None:
    bundle = xenium(tmp_path / "P1")
    for name in ("P1_he_image.ome.tif", "P1_he_imagealignment.csv"):
        (bundle / name).unlink()
    with pytest.raises(SectionError, match="unknown; give its alignment"):
        section_spots(bundle)


def test_the_cells_table_of_a_xenium_bundle_asks_for_the_folder(tmp_path: Path) -> None:
    """Its µm are the morphology image's; elsewhere a table of these columns is in µm of the slide."""
    bundle = xenium(tmp_path / "P1")
    cells = pd.read_parquet(bundle / "cells.parquet")
    cells.to_csv(bundle / "cells.csv")
    obs = cells.set_index("cell_id")[["x_centroid", "y_centroid"]]
    data = anndata.AnnData(np.ones((len(obs), 1), np.float32), obs=obs, obsm={"spatial": obs.to_numpy()})
    data.write_h5ad(bundle / "cells.h5ad")
    for name in ("cells.parquet", "cells.csv", "cells.h5ad"):
        for mpp in (None, 0.25):
            with pytest.raises(
                SectionError, match=rf"{name} is in a Xenium bundle.* give the bundle's folder"
            ):
                read_spots(bundle / name, mpp=mpp)
    shutil.move(bundle / "cells.parquet", tmp_path / "cells.parquet")
    for source in (tmp_path / "cells.parquet", cells):
        spots = read_spots(source, mpp=0.25)
        np.testing.assert_allclose(spots.xy_px, obs.to_numpy() * 4)


def test_the_summary_says_which_alignment_is_taken(tmp_path: Path) -> None:
    bundle = xenium(tmp_path / "P1")
    for slide in (None, tmp_path / "another_scan.svs"):  # the bundle's only one, whatever the slide's name
        spots = section_spots(bundle, slide)
        assert spots is not None and spots.coordinates.endswith("aligned by P1_he_imagealignment.csv")
    (tmp_path / "another_scanalignment.csv").write_text("1,0,0\n0,1,0\n0,0,1\n")
    spots = section_spots(bundle, tmp_path / "another_scan.svs")
    assert spots is not None and spots.coordinates.endswith("aligned by another_scanalignment.csv")


def test_the_cells_of_a_xenium_bundle_are_predicted_where_they_lie(
    tmp_path: Path, small_bundle: Path
) -> None:
    bundle = xenium(tmp_path / "P1")
    slide = tmp_path / "P1.tif"  # a copy elsewhere, with its alignment beside it
    shutil.move(bundle / "P1_he_image.ome.tif", slide)
    shutil.move(bundle / "P1_he_imagealignment.csv", tmp_path / "P1alignment.csv")
    words = [str(slide), "--spots", str(bundle), "--bundle", str(small_bundle), "--any-stain", "--no-picture"]
    done = CliRunner().invoke(infer, [*words, "--no-html", "--out", str(tmp_path / "a.h5ad")])
    assert done.exit_code == 0, done.output
    (source,) = find_sections(bundle).values()
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert data.obs_names.tolist() == read_section(source).spot.tolist()
    assert data.uns["mclst"]["slide"]["mpp"] == pytest.approx(XENIUM_PIXEL * np.hypot(1.3, 0.02))
    done = CliRunner().invoke(infer, [str(slide), "--grid", "50", "--bin", "8"])
    assert done.exit_code == 2 and "--bin belongs to --spots" in done.output


def test_pseudo_spots_are_predicted_and_evaluated(tmp_path: Path, small_bundle: Path) -> None:
    one, two, three, *_ = open_bundle(small_bundle).genes
    bundle = xenium(tmp_path / "P1", genes=(str(one), str(two), str(three)))
    words = [
        "--spots",
        str(bundle),
        "--bin",
        "40",
        "--bundle",
        str(small_bundle),
        "--any-stain",
        "--no-picture",
    ]
    slide, out = str(bundle / "P1_he_image.ome.tif"), str(tmp_path / "a.h5ad")
    done = CliRunner().invoke(infer, [slide, *words, "--no-html", "--out", out])
    assert done.exit_code == 0, done.output
    words = [out, "--truth", str(bundle), "--bin", "40", "--common-genes", "--baselines", "none"]
    done = CliRunner().invoke(evaluate, [*words, "--out", str(tmp_path / "e")])
    assert done.exit_code == 0, done.output
    scores = pd.read_csv(tmp_path / "e.csv")
    assert scores.spots[0] == 25 and np.isfinite(scores.mse[0])
    training = gather_training(bundle, ["P1"], [one, two], "spot-wise", files=SectionFiles(bins="40"))
    assert set(training.tests["P1"].spot) == set(anndata.read_h5ad(out).obs_names)


def test_spots_of_the_hires_picture_are_scaled_to_it(tmp_path: Path) -> None:
    spatial = space_ranger(tmp_path / "P1", 0.2) / "outs" / "spatial"
    for given in (tmp_path / "P1", spatial, spatial / "tissue_positions.csv"):
        spots = read_spots(given)
        scaled = on_picture(spots, spatial / "tissue_hires_image.png")
        np.testing.assert_allclose(scaled.xy_px, spots.xy_px * 0.2)
        assert scaled.spot_diameter_px == pytest.approx(13) and "times 0.2" in scaled.coordinates
    shutil.copy(spatial / "tissue_hires_image.png", tmp_path)
    for other in (tmp_path / "tissue_hires_image.png", spatial / "slide.tif"):
        assert on_picture(spots, other) is spots


def test_real_positions_lie_on_their_own_picture() -> None:
    spatial = SHARED / "visium" / "spatial_gradients" / "spatial"
    if not spatial.is_dir():
        pytest.skip("reference data visium/spatial_gradients are not beside the checkout")
    picture = spatial / "tissue_hires_image.png"
    spots = on_picture(read_spots(spatial), picture)
    with Image.open(picture) as image:
        assert len(spots) == 1937 and (spots.xy_px > 0).all() and (spots.xy_px < image.size).all()
