"""Xenium bundles: cells and pseudo-spots in px of the H&E slide, against scanpy and pandas."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy
from section_folders import XENIUM_ALIGNMENT, XENIUM_PIXEL, xenium

from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.array_pitch import section_resolution
from mclst.sections import Section, SectionError, find_sections, read_section
from mclst.sections.formats.images import missing_image, with_images
from mclst.sections.tenx import transcripts

pytest.importorskip("pyarrow")
GENES = ["EPCAM", "ERBB2", "PTPRC"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xenium(tmp_path_factory.mktemp("xenium") / "Breast")


def read(path: Path, bins: str | None = None) -> Section:
    (source,) = find_sections(path, bins).values()
    return read_section(source)


def morphology_px(section: Section) -> np.ndarray:
    """Where the alignment, as 10x defines it, puts a section's positions in the morphology image."""
    assert section.xy_px is not None
    homogeneous = np.column_stack([section.xy_px, np.ones(len(section))])
    return (homogeneous @ XENIUM_ALIGNMENT.T)[:, :2]


def test_cells_are_those_of_scanpy_at_their_centroids(bundle: Path) -> None:
    section = read(bundle)
    theirs = scanpy.read_10x_h5(bundle / "cell_feature_matrix.h5")  # gene expression only
    assert section.name == "Breast" and section.genes.tolist() == GENES == theirs.var_names.tolist()
    assert section.spot.tolist() == theirs.obs_names.tolist()
    np.testing.assert_array_equal(section.counts.toarray(), theirs.X.toarray())
    cells = pd.read_parquet(bundle / "cells.parquet").set_index("cell_id").loc[section.spot.tolist()]
    expected = cells[["x_centroid", "y_centroid"]].to_numpy() / XENIUM_PIXEL
    np.testing.assert_allclose(morphology_px(section), expected, atol=1e-6)
    assert section.synonyms["ENSG00000141736"] == 1
    assert section.image == bundle / "Breast_he_image.ome.tif"


def test_the_alignment_tells_the_slides_scale(bundle: Path) -> None:
    section = read(bundle)
    assert section.mpp == pytest.approx(XENIUM_PIXEL * np.hypot(1.3, 0.02))
    assert section.image is not None
    with open_slide(section.image) as slide:
        assert section_resolution(slide, section).mpp == section.mpp


@pytest.mark.parametrize("bins", ["50", "40/30"])
@pytest.mark.parametrize("at_once", [100, 4_000_000])
def test_pseudo_spots_count_transcripts_of_quality_20(
    bundle: Path, bins: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcripts, "PAIRS_AT_ONCE", at_once)
    section = read(bundle, bins)
    pitch, *diameter = (int(part) for part in bins.split("/"))
    table = pd.read_parquet(bundle / "transcripts.parquet")
    table = table[(table.qv >= 20) & table.feature_name.isin(GENES)]
    place: Any = np.floor(table[["x_location", "y_location"]].astype(float) / pitch).astype(int)
    if diameter:
        from_center = table[["x_location", "y_location"]].to_numpy(float) - (place.to_numpy() + 0.5) * pitch
        inside = np.hypot(*from_center.T) <= diameter[0] / 2
        table, place = table[inside], place[inside]
    names = place.x_location.astype(str) + "x" + place.y_location.astype(str)
    expected = pd.crosstab(names, table.feature_name).reindex(columns=GENES)
    assert set(section.spot) == set(expected.index)
    np.testing.assert_array_equal(section.counts.toarray(), expected.loc[section.spot.tolist()])
    assert section.array_xy is not None
    centers = (section.array_xy + 0.5) * pitch / XENIUM_PIXEL
    np.testing.assert_allclose(morphology_px(section), centers, atol=1e-6)


def test_names_as_bytes_of_the_first_versions_are_read(bundle: Path, tmp_path: Path) -> None:
    old = xenium(tmp_path / "Breast", bytes_names=True)
    for bins in (None, "50"):
        ours, theirs = read(old, bins), read(bundle, bins)
        np.testing.assert_array_equal(ours.xy_px, theirs.xy_px)
        np.testing.assert_array_equal(ours.counts.toarray(), theirs.counts.toarray())


def test_public_downloads_lie_side_by_side(tmp_path: Path) -> None:
    outs = xenium(tmp_path / "Lung_outs")
    for ending in ("_he_image.ome.tif", "_he_imagealignment.csv"):
        (outs / f"Lung_outs{ending}").rename(tmp_path / f"Lung{ending}")
    section = read(tmp_path)
    assert section.name == "Lung" and section.image == tmp_path / "Lung_he_image.ome.tif"
    assert section.xy_px is not None


def test_a_slide_without_an_alignment_is_refused(tmp_path: Path) -> None:
    bundle = xenium(tmp_path / "Breast")
    (bundle / "Breast_he_imagealignment.csv").rename(tmp_path / "matrix.csv")
    with pytest.raises(SectionError, match=r"export the matrix .* as Breast_he_imagealignment\.csv"):
        read(bundle)
    (bundle / "Breast_he_image.ome.tif").rename(tmp_path / "other.tif")
    (source,) = find_sections(bundle).values()
    assert read_section(source).xy_px is None  # counts alone, for an evaluation
    assert "or *he_image.ome.tif, in" in missing_image(source)
    (tmp_path / "otheralignment.csv").write_text("1,0,0\n0,1,0\n0,0,1\n")
    (source,) = with_images({"Breast": source}, {"Breast": tmp_path / "other.tif"}).values()
    section, cells = read_section(source), pd.read_parquet(bundle / "cells.parquet").set_index("cell_id")
    expected = cells.loc[section.spot.tolist(), ["x_centroid", "y_centroid"]].to_numpy() / XENIUM_PIXEL
    np.testing.assert_allclose(section.xy_px, expected)  # type: ignore[arg-type]
    assert section.mpp == pytest.approx(XENIUM_PIXEL)


@pytest.mark.parametrize(
    "text",
    ["1,0\n0,1\n", "1,0,0\n0,1,0\n0,0,2\n", "1,1,0\n1,1,0\n0,0,1\n", "a,b,c\n", "nan,0,0\n0,1,0\n0,0,1\n"],
)
def test_an_alignment_that_is_none_is_refused(bundle: Path, tmp_path: Path, text: str) -> None:
    slide = tmp_path / "he.tif"
    slide.touch()
    (tmp_path / "healignment.csv").write_text(text)
    sources = with_images(find_sections(bundle), {"Breast": slide})
    with pytest.raises(SectionError, match="the alignment is no"):
        read_section(sources["Breast"])


@pytest.mark.parametrize("bins", ["0", "50/60", "50/0", "5x5", "1000"])
def test_pseudo_spots_that_are_none_are_refused(bundle: Path, bins: str) -> None:
    with pytest.raises(SectionError, match="is no pseudo-spot"):
        read(bundle, bins)


def test_hostile_tables_are_refused(bundle: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any], str | None, str]] = [
        ("cells.parquet", {"x_centroid": np.nan}, None, "is at .nan"),
        ("cells.parquet", {"x_centroid": 1e300}, None, "give finite µm"),
        ("cells.parquet", {"cell_id": "a"}, None, "'a' is there twice"),
        (
            "cells.parquet",
            {"cell_id": [f"z{i}" for i in range(12)]},
            None,
            "12 of 12 cells .* have no position",
        ),
        ("transcripts.parquet", {"x_location": np.inf}, "50", "location that is not finite or too far"),
        ("transcripts.parquet", {"qv": 3.0}, "50", "nothing to count"),
        ("transcripts.parquet", {"qv": "high"}, "50", "column qv does not hold numbers"),
    ]
    shutil.copytree(bundle, tmp_path / "B", ignore=shutil.ignore_patterns("*.tif"))
    whole, bundle = bundle, tmp_path / "B"
    for name, columns, bins, words in cases:
        pd.read_parquet(whole / name).assign(**columns).to_parquet(bundle / name, index=False)
        with pytest.raises(SectionError, match=words):
            read(bundle, bins)
        shutil.copy(whole / name, bundle / name)
    # A bomb: a row costs nothing where all are equal.
    rows = 300_000
    zero = np.zeros(rows, np.float32)
    bomb = {"feature_name": "EPCAM", "x_location": zero, "y_location": zero, "qv": zero + 40}
    pd.DataFrame(bomb).to_parquet(bundle / "transcripts.parquet", compression="zstd")
    with pytest.raises(SectionError, match="declares 300,000 rows in"):
        read(bundle, "50")
    (bundle / "transcripts.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SectionError, match="the Parquet file cannot be read"):
        read(bundle, "50")
    (bundle / "transcripts.parquet").unlink()
    with pytest.raises(SectionError, match=r"no transcripts\.parquet, which --bin 50 needs"):
        find_sections(bundle, "50")
    for content in ("{", "[]", json.dumps({"pixel_size": 0}), json.dumps({"pixel_size": "0.2"})):
        (bundle / "experiment.xenium").write_text(content)
        with pytest.raises(SectionError, match=r"experiment\.xenium"):
            read(bundle)
