"""Synthetic slides of vendors whose real files are large, against their pixels and OpenSlide's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profile import quick
from synthetic_slides import PAD, cut
from synthetic_vendors import VENDORS, SyntheticSlide

from mclst.runtime.run.hashes import SlideHash
from mclst.runtime.slide.base import Slide
from mclst.runtime.slide.open import open_slide


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
