"""Visium HD from Space Ranger's top folder: bins of any size and segmented cells, against scanpy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy
from section_folders import hd_center, visium_hd, write_matrix

from mclst.sections.errors import SectionError
from mclst.sections.formats.images import with_images
from mclst.sections.formats.reference import find_sections, read_section
from mclst.sections.formats.visium_hd import choose_folder
from mclst.sections.section import Section
from mclst.sections.tenx import bins as bin_pooling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pyarrow")
    return visium_hd(tmp_path_factory.mktemp("hd") / "P1")


def read(path: Path, bins: str = "8") -> Section:
    (source,) = find_sections(path, bins).values()
    return read_section(source)


@pytest.mark.parametrize("bins", ["8", "16"])
def test_bins_of_the_top_folder_are_those_of_scanpy(folder: Path, bins: str) -> None:
    square = folder / "outs/binned_outputs" / f"square_{int(bins):03d}um"
    theirs = scanpy.read_10x_h5(square / "filtered_feature_bc_matrix.h5")
    positions = pd.read_parquet(square / "spatial/tissue_positions.parquet").set_index("barcode")
    positions = positions.loc[theirs.obs_names]
    for given in (folder, folder / "outs", square):
        section = read(given, bins)
        assert section.spot.tolist() == theirs.obs_names.tolist()
        np.testing.assert_array_equal(section.counts.toarray(), theirs.X.toarray())
        np.testing.assert_array_equal(section.xy_px, positions[["pxl_col_in_fullres", "pxl_row_in_fullres"]])
    assert read(folder, bins).name == "P1"


@pytest.mark.parametrize("size", [16, 24, 32])
def test_bins_are_pooled_to_the_wanted_size(folder: Path, tmp_path: Path, size: int) -> None:
    shutil.copytree(folder, tmp_path / "P1")
    shutil.rmtree(tmp_path / "P1/outs/binned_outputs/square_016um")
    fine, pooled = read(tmp_path / "P1"), read(tmp_path / "P1", str(size))
    assert fine.array_xy is not None and pooled.array_xy is not None and pooled.xy_px is not None
    squares = fine.array_xy // (size // 8)
    frame = pd.DataFrame(fine.counts.toarray()).groupby([squares[:, 1], squares[:, 0]]).sum()
    np.testing.assert_array_equal(pooled.array_xy[:, ::-1], np.array(frame.index.tolist()))
    np.testing.assert_array_equal(pooled.counts.toarray(), frame.to_numpy())
    column, row = pooled.array_xy.T
    np.testing.assert_allclose(pooled.xy_px, np.column_stack(hd_center(row, column, size, 0.5)), atol=1e-6)
    assert pooled.spot[0] == f"s_{size:03d}um_{row[0]:05d}_{column[0]:05d}-1"
    assert pooled.counts.sum() == fine.counts.sum()


def test_pooled_bins_are_those_that_space_ranger_pools(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "P1")
    shutil.rmtree(tmp_path / "P1/outs/binned_outputs/square_016um")
    theirs, ours = read(folder, "16"), read(tmp_path / "P1", "16")
    order = np.argsort(theirs.spot)
    mine = np.argsort(ours.spot)
    assert theirs.spot[order].tolist() == ours.spot[mine].tolist()
    np.testing.assert_array_equal(theirs.counts[order].toarray(), ours.counts[mine].toarray())
    assert theirs.xy_px is not None and ours.xy_px is not None
    np.testing.assert_allclose(theirs.xy_px[order], ours.xy_px[mine], atol=1e-6)


@pytest.mark.parametrize("at_once", [30, 400])
def test_blocks_and_the_order_of_bins_do_not_matter(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    whole = read(folder, "24")
    square = "outs/binned_outputs/square_008um"
    shutil.copytree(folder / square, tmp_path / "P1" / square)
    fine = read(folder)
    shuffled = np.random.default_rng(at_once).permutation(len(fine))
    path = tmp_path / "P1" / square / "filtered_feature_bc_matrix.h5"
    write_matrix(path, fine.spot[shuffled], fine.counts[shuffled].toarray())
    monkeypatch.setattr(bin_pooling, "ENTRIES_AT_ONCE", at_once)
    monkeypatch.setattr(bin_pooling, "NAMES_AT_ONCE", at_once)
    for bins in (read(folder, "24"), read(tmp_path / "P1", "24")):
        assert bins.spot.tolist() == whole.spot.tolist()
        np.testing.assert_array_equal(bins.counts.toarray(), whole.counts.toarray())


def test_what_are_no_bins_is_not_pooled(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "P1")
    path = tmp_path / "P1/outs/binned_outputs/square_016um/filtered_feature_bc_matrix.h5"
    for names, words in (
        (["s_016um_00000_00001-1", "s_016um_0000_00001-1"], "'s_016um_0000_00001-1' is no bin"),
        (["s_016um_00000_00001-1", "s_008um_00000_00002-1"], "bins are of 2 sizes"),
        (["AAACAAGTATCTCCCA-1", "x"], "'AAACAAGTATCTCCCA-1' is no bin"),
    ):
        write_matrix(path, np.array(names), np.ones((2, 3)))
        with pytest.raises(SectionError, match=words):
            read(tmp_path / "P1", "32")


@pytest.mark.parametrize("bins", ["100/55", "0", "-8", "²", "٨", "8.0", "08", "", "1000"])
def test_what_is_no_size_of_bins_is_refused(tmp_path: Path, bins: str) -> None:
    for size in ("002", "008", "016"):
        (tmp_path / "binned_outputs" / f"square_{size}um").mkdir(parents=True)
    with pytest.raises(SectionError, match=r"is no bin of Visium HD .* whole µm from 1 to 999"):
        choose_folder(tmp_path, bins)


def test_segmented_cells_lie_at_their_centroids(folder: Path) -> None:
    section = read(folder, "cells")
    assert section.spot.tolist() == ["cellid_000000012-1", "cellid_000000002-1", "cellid_000000001-1"]
    assert section.xy_px is not None
    np.testing.assert_allclose(section.xy_px, [[1200, 400], [950, 860], [900, 800]])
    assert section.counts.toarray().tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SectionError, match=r"no bins make 12 µm; there are 8, 16 µm"):
        find_sections(folder, "12")
    shutil.copytree(folder, tmp_path / "P1")
    outlines = tmp_path / "P1/outs/segmented_outputs/cell_segmentations.geojson"
    outlines.write_text(outlines.read_text().replace('"cell_id": 12', '"cell_id": 13'))
    with pytest.raises(SectionError, match=r"1 of 3 cells .* have no outline, the first is cellid_0+12-1"):
        read(tmp_path / "P1", "cells")
    shutil.rmtree(tmp_path / "P1/outs/segmented_outputs")
    with pytest.raises(SectionError, match="there is no segmented_outputs"):
        find_sections(tmp_path / "P1", "cells")


def test_a_slide_is_given_by_the_top_folders_name(folder: Path, tmp_path: Path) -> None:
    slide = tmp_path / "slide.btf"
    slide.touch()
    (source,) = with_images(find_sections(folder), {"P1": slide}).values()
    assert source.image == slide
