"""An opened slide: real ones against OpenSlide, Pillow and tifffile; thumbnails; many threads."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from synthetic_slides import PAD, tissue, write_layout

from mclst.runtime.errors import SlideError
from mclst.runtime.slide.base import TileReadError
from mclst.runtime.slide.open import open_slide


def against_openslide(path: Path, boxes: int) -> None:
    import openslide

    rng = np.random.default_rng(1)
    with open_slide(path) as slide, openslide.OpenSlide(path) as oracle:
        assert slide.reader == "tifffile"
        assert (slide.width_px, slide.height_px) == oracle.dimensions
        # OpenSlide adds levels of its own making below those in an NDPI.
        assert [(a.width_px, a.height_px) for a in slide.levels] == list(oracle.level_dimensions)[
            : len(slide.levels)
        ]
        assert slide.mpp == pytest.approx(float(oracle.properties["openslide.mpp-x"]), rel=1e-6)
        assert slide.objective is not None
        assert slide.objective[0] == float(oracle.properties["openslide.objective-power"])
        for number, level in enumerate(slide.levels):
            for _ in range(boxes):
                width, height = (int(v) for v in rng.integers(1, 400, 2))
                x = int(rng.integers(-300, level.width_px + 100))
                y = int(rng.integers(-300, level.height_px + 100))
                at = round(x * level.downsample), round(y * level.downsample)
                theirs = np.asarray(oracle.read_region(at, number, (width, height)))
                expected = np.where(theirs[..., 3:] == 255, theirs[..., :3], np.array(PAD, np.uint8))
                np.testing.assert_array_equal(
                    slide.read(x, y, width, height, level=number, pad=PAD), expected
                )


@pytest.mark.slow
def test_aperio_rgb_jpeg_equals_openslide(slides: Path) -> None:
    against_openslide(slides / "CMU-1-Small-Region.svs", 60)


@pytest.mark.slow
def test_ndpi_equals_openslide_on_every_level(slides: Path) -> None:
    against_openslide(slides / "test3-DAPI-2-_387_.ndpi", 25)


def test_plain_strip_tiff_equals_tifffile(slides: Path) -> None:
    path = slides / "kidney-48-5.tif"
    with open_slide(path) as slide:
        whole = slide.read(0, 0, slide.width_px, slide.height_px)
        assert slide.mpp is None
    np.testing.assert_array_equal(whole, tifffile.imread(path))


@pytest.mark.parametrize("reader", ["tifffile", "openslide"])
@pytest.mark.slow
def test_one_bad_tile_spoils_only_what_lies_over_it(slides: Path, reader: str) -> None:
    """Eight threads at once: with OpenSlide one thread's error kills the handle under the others."""
    boxes = [(x, y) for y in range(900, 1700, 90) for x in range(700, 1400, 90)]
    with (
        open_slide(slides / "CMU-1-Small-Region.onebadtile.svs", reader=reader) as bad,
        open_slide(slides / "CMU-1-Small-Region.svs", reader=reader) as good,
        ThreadPoolExecutor(8) as pool,
    ):

        def same(box: tuple[int, int]) -> bool:
            try:
                return bool(np.array_equal(bad.read(*box, 100, 100), good.read(*box, 100, 100)))
            except TileReadError:
                return False

        right = list(pool.map(same, boxes))
    over = [960 - 100 < x < 1200 and 1200 - 100 < y < 1440 for x, y in boxes]
    assert right == [not hit for hit in over]
    assert any(over)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("CMU-1-Small-Region.truncated.svs", "cut off"),
        ("histolab-broken.svs", "not a slide"),
        ("large_image-small_la.tiff", "2 samples per pixel"),
        ("README.md", "it holds text"),
    ],
)
def test_real_broken_files_are_refused_in_a_sentence(slides: Path, name: str, why: str) -> None:
    with pytest.raises(SlideError, match=why) as refusal:
        open_slide(slides / name)
    assert "\n" not in str(refusal.value)
    assert name in str(refusal.value)


def test_aperio_cut_anywhere_is_refused_unless_its_pixels_are_there(slides: Path, tmp_path: Path) -> None:
    source = slides / "CMU-1-Small-Region.svs"
    whole = source.read_bytes()
    with open_slide(source) as slide:
        expected = slide.read(0, 0, slide.width_px, slide.height_px)
    for share in (0.05, 0.3, 0.66, 0.9, 0.99):
        path = tmp_path / "cut.svs"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(SlideError):
            open_slide(path)
    # Only the macro image's tags are lost.
    (tmp_path / "nearly.svs").write_bytes(whole[:-194])
    with open_slide(tmp_path / "nearly.svs") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, slide.width_px, slide.height_px), expected)


@pytest.mark.slow
def test_openslide_reader_equals_openslide(slides: Path) -> None:
    import openslide

    path = slides / "test3-DAPI-2-_387_.ndpi"
    with open_slide(path, reader="openslide") as slide, openslide.OpenSlide(path) as oracle:
        theirs = np.asarray(oracle.read_region((800, 400), 2, (300, 200)).convert("RGB"))
        np.testing.assert_array_equal(slide.read(200, 100, 300, 200, level=2), theirs)
        assert (slide.reader, slide.vendor) == ("openslide", "hamamatsu")


def test_a_slide_that_needs_openslide_says_so_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    scn = '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"></scn>'
    tifffile.imwrite(tmp_path / "a.scn", tissue(), photometric="rgb", description=scn, metadata=None)
    Image.fromarray(tissue()).save(tmp_path / "a.mrxs", format="jpeg")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Slidedat.ini").write_text("[GENERAL]\n")
    for name in ("a.dcm", "a.scn", "a.mrxs"):
        with pytest.raises(SlideError, match=r"pip install 'mclst\[openslide\]'"):
            open_slide(tmp_path / name)
    with pytest.raises(SlideError, match="only OpenSlide"):
        open_slide(tmp_path / "a.scn", reader="tifffile")


@pytest.mark.slow
def test_what_openslide_cannot_open_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    with pytest.raises(SlideError, match="OpenSlide cannot open"):
        open_slide(tmp_path / "a.dcm")


def test_a_segment_is_decoded_once_however_many_ask(tmp_path: Path) -> None:
    path, (image, *_) = write_layout(tmp_path, "tiled jpeg")
    with open_slide(path) as slide, ThreadPoolExecutor(8) as pool:
        together = threading.Barrier(8)

        def read(_: int) -> NDArray[np.uint8]:
            together.wait()
            return slide.read(0, 0, 420, 300)

        for pixels in pool.map(read, range(8)):
            np.testing.assert_array_equal(pixels, image)
        assert slide.cache.decoded == 5 * 5  # type: ignore[attr-defined]


def test_the_cache_stays_within_its_limit(tmp_path: Path) -> None:
    path, (image, *_) = write_layout(tmp_path, "tiled deflate")
    with open_slide(path) as slide:
        cache = slide.cache  # type: ignore[attr-defined]
        cache.limit = 3 * 48 * 80 * 3
        for _ in range(2):
            np.testing.assert_array_equal(slide.read(0, 0, 420, 300), image)
            assert cache.held_bytes <= cache.limit
        assert cache.decoded == 2 * 6 * 7


@pytest.mark.parametrize("name", ["one plain strip", "tiled zstd", "png"])
def test_a_closed_slide_says_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.png"
    if name == "png":
        Image.fromarray(tissue()).save(path)
    else:
        path, _ = write_layout(tmp_path, name)
    with open_slide(path) as slide:
        slide.read(0, 0, 10, 10)
    with pytest.raises(SlideError, match="closed"):
        slide.read(0, 0, 10, 10)


def test_a_level_or_size_that_does_not_exist_is_a_programming_error(tmp_path: Path) -> None:
    path, _ = write_layout(tmp_path, "tiled zstd")
    with open_slide(path) as slide:
        for box, level in (
            ((0, 0, 10, 10), 1),
            ((0, 0, 10, 10), -1),
            ((0, 0, 0, 10), 0),
            ((0, 0, 10, -1), 0),
        ):
            with pytest.raises(ValueError, match=r"level|rectangle"):
                slide.read(*box, level=level)


@pytest.mark.slow
def test_descriptors_are_given_back(tmp_path: Path) -> None:
    path, _ = write_layout(tmp_path, "tiled zstd")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with open_slide(path) as slide:
            slide.read(0, 0, 10, 10)
    assert len(os.listdir("/proc/self/fd")) < before + 10  # of 20; other threads may open some


@pytest.mark.parametrize("name", ["one plain strip", "tiled zstd", "jpeg strips"])
def test_thumbnail_is_the_mean_over_blocks(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, (image, *_) = write_layout(tmp_path, name)
    monkeypatch.setattr("mclst.runtime.slide.base.STRIP_PX", 420 * 60)  # several strips
    with open_slide(path) as slide:
        picture, scale = slide.thumbnail(42)
        assert scale == pytest.approx(0.1)
        means = image.reshape(30, 10, 42, 10, 3).mean((1, 3), dtype=np.float64)
        assert picture.shape == (30, 42, 3)
        assert np.abs(picture - means).max() <= 0.5
        same, scale = slide.thumbnail(5000)
        assert scale == 1.0
        np.testing.assert_array_equal(same, image)


def test_thumbnail_reads_the_smallest_sufficient_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, levels = write_layout(tmp_path, "tiled deflate")
    with open_slide(path) as slide:
        read_into, levels_read = slide.read_into, set()

        def watched(pixels: NDArray[np.uint8], x: int, y: int, *, level: int) -> None:
            levels_read.add(level)
            read_into(pixels, x, y, level=level)

        monkeypatch.setattr(slide, "read_into", watched)
        picture, scale = slide.thumbnail(105)
        np.testing.assert_array_equal(picture, levels[2])
        assert scale == pytest.approx(0.25)
        picture, _ = slide.thumbnail(106)
        assert picture.shape == (76, 106, 3)
        assert levels_read == {1, 2}


def test_thumbnail_leaves_a_bad_tile_white(slides: Path) -> None:
    with (
        open_slide(slides / "CMU-1-Small-Region.onebadtile.svs") as bad,
        open_slide(slides / "CMU-1-Small-Region.svs") as good,
    ):
        holed, scale = bad.thumbnail(600)
        whole, _ = good.thumbnail(600)
    assert (holed[int(1220 * scale) : int(1420 * scale), int(980 * scale) : int(1180 * scale)] == 255).all()
    np.testing.assert_array_equal(holed[: int(1130 * scale)], whole[: int(1130 * scale)])
    np.testing.assert_array_equal(holed[int(1510 * scale) :], whole[int(1510 * scale) :])
