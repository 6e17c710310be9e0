"""HEST-1k folders: samples by id, their slides, and µm per px by their metadata, against anndata."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from section_folders import hest

from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.array_pitch import section_resolution
from mclst.sections import SectionError, choose_sections, find_sections, read_section
from mclst.sections.formats.images import missing_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hest(tmp_path_factory.mktemp("hest"))


def test_samples_are_those_of_anndata_with_their_slides(folder: Path) -> None:
    for given in (folder, folder / "st"):
        sources = find_sections(given)
        assert list(sources) == ["INT1", "TENX95"]
        for name, source in sources.items():
            section, theirs = read_section(source), anndata.read_h5ad(folder / "st" / f"{name}.h5ad")
            assert section.image == folder / "wsis" / f"{name}.tif"
            assert section.spot.tolist() == theirs.obs_names.tolist()
            np.testing.assert_array_equal(section.counts.toarray(), theirs.X)
            np.testing.assert_array_equal(section.xy_px, theirs.obsm["spatial"])
    assert choose_sections(sources, "TENX95") == ["TENX95"]
    assert list(find_sections(folder / "st" / "INT1.h5ad")) == ["INT1"]


def test_metadata_tell_the_scale_where_the_slide_does_not(folder: Path) -> None:
    section = read_section(find_sections(folder)["INT1"])
    assert section.mpp == 0.2738 and section.image is not None
    with open_slide(section.image) as slide:
        resolution = section_resolution(slide, section)
        assert resolution.mpp == 0.2738 and "by the section's own files" in resolution.notes[0]
        given = section_resolution(slide, section, 0.5)
    assert given.mpp == 0.5 and "against 0.2738 µm/px by the section's own files" in given.notes[0]


def test_a_sample_without_a_slide_says_where_it_belongs(tmp_path: Path) -> None:
    folder = hest(tmp_path / "hest", ("INT1",))
    (folder / "wsis" / "INT1.tif").unlink()
    (source,) = find_sections(folder).values()
    assert source.image is None
    assert f"there is no INT1.tif, .svs, .ndpi, .jpg or .png in {folder / 'wsis'}" in missing_image(source)
    (folder / "metadata" / "INT1.json").unlink()
    assert read_section(source).mpp is None


@pytest.mark.parametrize("value", [0, -1, "0.5", True, float("nan"), [0.5]])
def test_metadata_with_another_scale_are_refused(tmp_path: Path, value: object) -> None:
    folder = hest(tmp_path / "hest", ("INT1",))
    path = folder / "metadata" / "INT1.json"
    path.write_text(json.dumps({"pixel_size_um_estimated": value}))
    with pytest.raises(SectionError, match="pixel_size_um_estimated is"):
        read_section(find_sections(folder)["INT1"])
    path.write_text("{")
    with pytest.raises(SectionError, match="metadata cannot be read"):
        read_section(find_sections(folder)["INT1"])
