"""JPEG pictures of which only what was announced is kept: pixels and errors of pictures decoded whole."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic_slides import tissue

from mclst.runtime.decoding import blocks, jpeg
from mclst.runtime.errors import ResourceError, SlideError
from mclst.runtime.slide import picture
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.tiles import Tiles, TileShape

WIDTH, HEIGHT = 420, 300
FEW = np.array([[10, 20], [200, 150], [-5, 280]], np.int64)
by_blocks = pytest.mark.skipif(
    not blocks.can_keep_blocks(), reason="the part is not compiled here, or there is no libjpeg-turbo"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.fromarray(tissue()).save(tmp_path / "a.jpg", quality=90, icc_profile=None)
    return tmp_path / "a.jpg"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is decoded: "blocks" or "whole"; with small blocks and bands."""
    made: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def function(*arguments: Any) -> Any:
            made.append(name)
            return real(*arguments)

        return function

    monkeypatch.setattr(blocks, "BLOCK_PX", 16)
    monkeypatch.setattr(blocks, "BAND_BYTES", 20_000)
    monkeypatch.setattr(picture, "keep_blocks", counted("blocks", blocks.keep_blocks))
    monkeypatch.setattr(jpeg, "decode_jpeg", counted("whole", jpeg.decode_jpeg))
    yield made


@by_blocks
def test_what_was_announced_is_read_from_one_pass(path: Path, passes: list[str]) -> None:
    expected = np.asarray(Image.open(path))
    with open_slide(path, lazy=True) as slide:
        assert slide.is_pending and not passes
        assert (slide.width_px, slide.height_px, slide.vendor) == (WIDTH, HEIGHT, "jpeg")
        slide.expect(FEW, 40, 0)
        for x, y in FEW.tolist():
            square = slide.read(x, y, 40, 40, pad=(1, 2, 3))
            left, top = max(x, 0), max(y, 0)
            inside = expected[top : y + 40, left : x + 40]
            np.testing.assert_array_equal(
                square[top - y :, left - x :][: len(inside), : inside.shape[1]], inside
            )
        assert passes == ["blocks"] and not slide.is_pending
        slide.decode()
        slide.expect(FEW, 40, 0)
        assert passes == ["blocks"]


@by_blocks
def test_what_was_not_announced_costs_one_more_pass(path: Path, passes: list[str]) -> None:
    expected = np.asarray(Image.open(path))
    with open_slide(path, lazy=True) as slide:
        slide.expect(FEW, 40, 0)
        slide.decode()
        np.testing.assert_array_equal(slide.read(300, 10, 50, 60), expected[10:70, 300:350])
        np.testing.assert_array_equal(slide.read(0, 0, WIDTH, HEIGHT), expected)
        np.testing.assert_array_equal(slide.thumbnail(500)[0], expected)
        assert passes == ["blocks", "whole"]
    with open_slide(path, lazy=True) as slide:
        np.testing.assert_array_equal(slide.read(5, 6, 7, 8), expected[6:14, 5:12])
        slide.expect(FEW, 40, 0)
        np.testing.assert_array_equal(slide.read(0, 0, WIDTH, HEIGHT), expected)
    assert passes == ["blocks", "whole", "whole"]


@by_blocks
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("longest", [1, 33, 200, 420, 2000])
def test_an_announced_overview_is_the_thumbnail(
    path: Path, passes: list[str], longest: int, alone: bool
) -> None:
    with open_slide(path) as whole:
        expected, scale = whole.thumbnail(longest)
    passes.clear()
    with open_slide(path, lazy=True) as slide:
        slide.expect_overview(longest)
        if not alone:
            slide.expect(FEW, 40, 0)
        slide.decode()
        got = slide.overview(longest)
        assert got[1] == scale and passes == ["blocks"]
        np.testing.assert_array_equal(got[0], expected)


@by_blocks
def test_tiles_of_threads_come_from_one_pass(path: Path, passes: list[str]) -> None:
    xy = np.random.default_rng(0).uniform(0, (WIDTH, HEIGHT), (60, 2))
    with open_slide(path) as whole:
        tiles = Tiles(whole, xy, TileShape(32), batch_size=8, workers=1)
        expected = np.stack([tiles.read_tile(row) for row in range(60)])
    passes.clear()
    with open_slide(path, lazy=True) as slide:
        for part in Tiles(slide, xy, TileShape(32), batch_size=8, workers=6):
            np.testing.assert_array_equal(part.tiles, expected[part.rows])
        with ThreadPoolExecutor(6) as pool:
            corners = [(x, y) for x in range(0, 400, 50) for y in range(0, 300, 50)]
            squares = list(pool.map(lambda place: slide.read(place[0], place[1], 50, 50), corners))
    assert passes == ["blocks", "whole"]
    pixels = np.zeros((HEIGHT + 50, WIDTH + 50, 3), np.uint8)
    pixels[:HEIGHT, :WIDTH] = np.asarray(Image.open(path))
    for (x, y), square in zip(corners, squares, strict=True):
        np.testing.assert_array_equal(square, pixels[y : y + 50, x : x + 50])


@by_blocks
def test_a_damaged_picture_is_refused_in_the_words_of_opening(path: Path, tmp_path: Path) -> None:
    whole, damaged = path.read_bytes(), tmp_path / "damaged.jpg"
    expected = np.asarray(Image.open(path))
    for share in np.linspace(0, 1, 25, endpoint=False):
        at = int(len(whole) * share)
        noise = whole[:at] + bytes(64) + whole[at + 64 :]
        for data in (whole[:at], noise):
            damaged.write_bytes(data)
            try:
                with open_slide(damaged) as slide:
                    pixels, said = slide.read(0, 0, 40, 40), ""
            except SlideError as error:
                pixels, said = expected[:40, :40], str(error)
            try:
                with open_slide(damaged, lazy=True) as slide:
                    slide.expect(np.array([[0, 0]]), 40, 0)
                    with suppress(SlideError):
                        slide.read(0, 0, 40, 40)  # it does not become right by asking twice
                    np.testing.assert_array_equal(slide.read(0, 0, 40, 40), pixels)
                assert not said
            except SlideError as error:
                assert str(error) == said


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colors_are_decoded_by_opening(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(tissue()).convert(mode).save(path)
    with open_slide(path) as whole, open_slide(path, lazy=True) as slide:
        assert not slide.is_pending
        np.testing.assert_array_equal(slide.read(0, 0, 99, 99), whole.read(0, 0, 99, 99))


def test_without_the_compiled_part_pixels_are_the_same(
    path: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "can_keep_blocks", lambda: False)
    with open_slide(path, lazy=True) as slide:
        assert not slide.is_pending and passes == ["whole"]
        slide.expect(FEW, 40, 0)
        slide.decode()
        np.testing.assert_array_equal(slide.read(0, 0, WIDTH, HEIGHT), np.asarray(Image.open(path)))
    assert passes == ["whole"]


@by_blocks
def test_limits_hold_before_anything_is_decoded(
    path: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "MAX_DECODED_PX", 1000)
    with pytest.raises(ResourceError, match="tiled TIFF"):
        open_slide(path, lazy=True)
    assert not passes


@by_blocks
def test_memory_that_is_missing_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(picture, "keep_blocks", missing)
    monkeypatch.setattr(jpeg, "decode_jpeg", missing)
    with open_slide(path, lazy=True) as slide:
        slide.expect(FEW, 40, 0)
        with pytest.raises(ResourceError, match="does not fit in memory"):
            slide.decode()


@by_blocks
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_closed_picture_says_so(path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    inside, closed = Event(), Event()

    def waits(*arguments: Any) -> Any:
        inside.set()
        closed.wait()
        return blocks.keep_blocks(*arguments)

    slide = open_slide(path, lazy=True)
    slide.expect(FEW, 40, 0)
    if when == "during":
        monkeypatch.setattr(picture, "keep_blocks", waits)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(slide.read, 10, 20, 5, 5)
            inside.wait()
            slide.close()
            closed.set()
            with pytest.raises(SlideError, match="is closed"):
                reading.result()
    else:
        if when == "after":
            slide.read(10, 20, 5, 5)
        slide.close()
    for read in (lambda: slide.read(10, 20, 5, 5), lambda: slide.thumbnail(20)):
        with pytest.raises(SlideError, match="is closed"):
            read()
