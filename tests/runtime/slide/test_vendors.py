"""Synthetic slides of vendors whose real files are large, against their pixels and OpenSlide's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from synthetic_slides import PAD, cut
from synthetic_vendors import VENDORS, SyntheticSlide

from mclst.runtime.run.hashes import SlideHash
from mclst.runtime.slide.base import Slide
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.bounds import border_note
from mclst.sections import read_spots
from mclst.sections.tables.geojson import GEOJSON_CELLS


@pytest.fixture(scope="module", params=sorted(VENDORS))
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[SyntheticSlide, Slide]]:
    synthetic = VENDORS[request.param](tmp_path_factory.mktemp("vendor"))
    with open_slide(synthetic.path) as slide:
        yield synthetic, slide


def test_levels_size_and_source_are_told(made: tuple[SyntheticSlide, Slide]) -> None:
    expected, slide = made
    sizes = [level.shape[1::-1] for level in expected.levels]
    assert [(level.width_px, level.height_px) for level in slide.levels] == sizes
    assert [level.downsample for level in slide.levels] == pytest.approx([1.0, 2.0, 4.0][: len(sizes)])
    assert slide.mpp == pytest.approx(expected.mpp) and slide.vendor == expected.vendor


def test_an_empty_border_that_qupath_leaves_out_is_told(made: tuple[SyntheticSlide, Slide]) -> None:
    expected, slide = made
    bounds = dict(openslide.OpenSlide(expected.path).properties)
    border = tuple(int(bounds.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
    assert slide.border_px == (border if slide.reader == "openslide" else (0, 0))
    frame = pd.DataFrame({"Centroid X px": [200.0], "Centroid Y px": [300.0]})
    of_qupath, plain = read_spots(frame), read_spots(frame.set_axis(["x", "y"], axis=1))
    cells = replace(of_qupath, variant=GEOJSON_CELLS)
    notes = [border_note(slide, spots, None) for spots in (of_qupath, cells)]
    notes.append(border_note(slide, None, Path("r.geojson")))
    assert border_note(slide, plain, None) == ""
    if slide.border_px == (0, 0):
        assert notes == [""] * 3
    else:
        assert all(f"an empty border of {border[0]} x {border[1]} px" in note for note in notes)


@quick
@given(data=st.data())
def test_any_rectangle_is_what_was_written(made: tuple[SyntheticSlide, Slide], data: st.DataObject) -> None:
    expected, slide = made
    number = data.draw(st.integers(0, len(slide.levels) - 1))
    pixels = expected.levels[number]
    x, y = data.draw(st.integers(-100, pixels.shape[1])), data.draw(st.integers(-100, pixels.shape[0]))
    width, height = data.draw(st.integers(1, 250)), data.draw(st.integers(1, 250))
    rectangle = slide.read(x, y, width, height, level=number, pad=PAD)
    np.testing.assert_array_equal(rectangle, cut(pixels, x, y, width, height))


def test_every_file_of_a_slide_counts_for_its_hash(tmp_path: Path) -> None:
    """A level of a DICOM slide, the photographs of a MIRAX: another file than the one that is named."""
    for name, part in (("DICOM, uncompressed", "level1.dcm"), ("MIRAX", "Data0000.dat")):
        (tmp_path / name).mkdir()
        synthetic = VENDORS[name](tmp_path / name)
        hashes = []
        for end in (b"", b"more"):
            with next((tmp_path / name).rglob(part)).open("ab") as file:
                file.write(end)
            with SlideHash(synthetic.path) as hashed:
                hashes.append(hashed.result())
        assert hashes[0] != hashes[1]


def test_every_pixel_equals_openslides(made: tuple[SyntheticSlide, Slide]) -> None:
    expected, slide = made
    with openslide.OpenSlide(expected.path) as oracle:
        for number, level in enumerate(slide.levels):
            theirs = np.asarray(oracle.read_region((0, 0), number, (level.width_px, level.height_px)))
            over_white = np.where(theirs[..., 3:] == 255, theirs[..., :3], np.uint8(255))
            ours = slide.read(0, 0, level.width_px, level.height_px, level=number)
            np.testing.assert_array_equal(ours, over_white)
