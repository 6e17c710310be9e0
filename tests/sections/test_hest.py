"""HEST-1k folders: samples by id, their slides, and µm per px by their metadata, against anndata."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from section_folders import hest, write_patches

from mclst.runtime.cli.infer import main as infer
from mclst.runtime.errors import SlideError
from mclst.runtime.slide.base import TileReadError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.array_pitch import coarse_note, section_resolution
from mclst.runtime.tiling.tiles import Tiles, TileShape
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
    assert source.image == folder / "patches" / "INT1.h5"
    (folder / "patches" / "INT1.h5").unlink()
    (source,) = find_sections(folder).values()
    assert source.image is None
    assert (
        f"there is no INT1.tif, .svs, .ndpi, .jpg or .png in {folder / 'wsis'} or {folder / 'patches'}"
        in missing_image(source)
    )
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


@pytest.fixture
def alone(folder: Path, tmp_path: Path) -> Path:
    """INT1 without its slide."""
    for part, suffix in (("st", "h5ad"), ("patches", "h5"), ("metadata", "json")):
        (tmp_path / part).mkdir()
        shutil.copy(folder / part / f"INT1.{suffix}", tmp_path / part)
    return tmp_path


def test_without_a_slide_tiles_are_the_samples_patches(alone: Path) -> None:
    folder = alone
    section = read_section(find_sections(folder)["INT1"])
    assert section.image == folder / "patches/INT1.h5" and section.mpp == pytest.approx(0.5)
    assert section.xy_px is not None
    with h5py.File(folder / "patches/INT1.h5") as file, open_slide(folder / "patches/INT1.h5") as slide:
        patches, resolution = file["img"][:], section_resolution(slide, section)
        assert (slide.reader, slide.mpp, resolution.mpp, resolution.notes) == ("hdf5", 0.5, 0.5, ())
        for side in (64, 40):  # of the patch's size, and its middle
            shape = TileShape(side, 0.5)
            for batch in Tiles(slide, section.xy_px, shape, batch_size=4, workers=2):
                inner = slice(32 - side // 2, 32 + side // 2)
                np.testing.assert_array_equal(batch.tiles, patches[batch.rows][:, inner, inner])
                assert not batch.failed
        (batch,) = Tiles(slide, section.xy_px, TileShape(300, 0.5), batch_size=6, workers=1)
        assert len(batch.failed) == 6 and "take smaller tiles, or the slide" in batch.failed[0][1]
    note = coarse_note(section, 0.5, 64, 0.5)
    assert "taken: INT1.h5 at 0.5 µm/px, 1.83 times coarser" in note and "cells" not in note
    assert "a tile covers 32 µm" in note


def test_a_tile_over_several_patches_is_the_slides(tmp_path: Path) -> None:
    """Patches of a smooth picture, which overlap: any tile within their union is that picture's."""
    y, x = np.mgrid[:400, :400]
    smooth = np.stack([x / 2, y / 2, (x + y) / 4], axis=-1).astype(np.uint8)
    centers = np.array([[x, y] for y in (100, 150, 200) for x in (100, 150, 200)], np.float64)
    write_patches(tmp_path / "S.h5", np.arange(9).astype(str), centers, smooth, 0.25)
    with open_slide(tmp_path / "S.h5") as slide:
        tile = slide.read(60 - 34, 70 - 34, 40, 30).astype(int)  # corners of the first patch: (36, 36) / 2 px
        expected = smooth[::2, ::2][70 - 34 : 100 - 34, 60 - 34 : 100 - 34].astype(int)
        assert np.abs(tile - expected).max() <= 1
        picture, scale = slide.thumbnail(1000)
        assert scale == 1.0 and (picture[-1, -1] != 255).all()
        with pytest.raises(TileReadError, match="has no patch for all of the 20 x 20 px"):
            slide.read(0, 0, 20, 20)
        assert (slide.thumbnail(1000)[0][:10, :10] == 255).all()
    with pytest.raises(SlideError, match="is closed"):
        slide.read(40, 40, 8, 8)


def test_the_map_of_patches_is_that_of_its_tiles_by_barcode(alone: Path, small_bundle: Path) -> None:
    patches, spots = alone / "patches/INT1.h5", alone / "st/INT1.h5ad"
    with h5py.File(patches, "r+") as file:  # HEST leaves out patches off the tissue
        for name in ("img", "coords", "barcode"):
            values, attributes = file[name][1:], dict(file[name].attrs)
            del file[name]
            file[name] = values
            file[name].attrs.update(attributes)
    words = [
        str(patches),
        "--spots",
        str(spots),
        "--bundle",
        str(small_bundle),
        "--out",
        str(alone / "m.h5ad"),
    ]
    done = CliRunner().invoke(infer, [*words, "--no-picture", "--no-html", "--no-cache", "--any-stain"])
    assert done.exit_code == 0, done.output
    assert "the patches of INT1.h5, by barcode, 1 without a patch left out" in done.stderr
    made = anndata.read_h5ad(alone / "m.h5ad")
    assert made.obs_names.tolist() == anndata.read_h5ad(spots).obs_names[1:].tolist()
    assert np.isfinite(made.X).all()
    section = read_section(find_sections(alone)["INT1"])
    assert section.xy_px is not None and np.isnan(section.xy_px[0]).all()
    np.testing.assert_array_equal(section.xy_px[1:], made.obsm["spatial"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.__delitem__("coords"), "there is no coords; patches are img, coords and barcode"),
        (lambda file: file["coords"].attrs.clear(), "do not say at what scale"),
        (lambda file: file["coords"].write_direct(file["coords"][:] + 9), "do not lie around their spots"),
        (lambda file: file["coords"].write_direct(file["coords"][:] << 40), "px apart"),
        (lambda file: file["barcode"].__setitem__(1, file["barcode"][0]), "a barcode has two patches"),
        (
            lambda file: file["barcode"].__setitem__(slice(None), [[f"x{i}"] for i in range(6)]),
            "no patch has",
        ),
        (lambda file: file.move("img", "image"), "there is no img"),
        (lambda file: file["img"].resize(5, axis=0), "give uint8"),
    ],
    ids=["no corners", "no scale", "elsewhere", "far", "twice", "others", "no pixels", "fewer"],
)
def test_patches_that_do_not_fit_are_refused(alone: Path, change: Any, words: str) -> None:
    with h5py.File(alone / "patches/INT1.h5", "r+") as file:
        change(file)
    with pytest.raises(SectionError, match=words):
        read_section(find_sections(alone)["INT1"])


def test_a_patch_that_is_damaged_costs_its_spot(alone: Path) -> None:
    path = alone / "patches/INT1.h5"
    with h5py.File(path, "r+") as file:
        pixels, attributes = file["img"][:], dict(file["img"].attrs)
        del file["img"]
        file.create_dataset("img", data=pixels, chunks=(1, 64, 64, 3), compression="gzip")
        file["img"].attrs.update(attributes)
        place = file["img"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[place.byte_offset + 20 : place.byte_offset + 60] = bytes(40)
    path.write_bytes(content)
    section = read_section(find_sections(alone)["INT1"])
    with open_slide(path) as slide:
        assert section.xy_px is not None
        (batch,) = Tiles(slide, section.xy_px, TileShape(64, 0.5), batch_size=6, workers=1)
        assert [row for row, _ in batch.failed] == [2] and "patch 2 cannot be read" in batch.failed[0][1]
    with pytest.raises(SlideError, match="which the openslide reader does not read"):
        open_slide(path, reader="openslide")
