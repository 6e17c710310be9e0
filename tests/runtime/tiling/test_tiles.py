"""Tiles against numpy slicing; batches, order, failures, and threads that end."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from formula_slide import FormulaSlide, reading_threads, scattered
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis_profile import quick
from numpy.typing import NDArray
from PIL import Image
from synthetic_slides import PAD, cut, tissue, write_layout

from mclst.runtime.batches import TileBatch
from mclst.runtime.errors import SlideError, SpotsError
from mclst.runtime.slide.base import TileReadError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.slide.segmented_slide import SegmentedSlide
from mclst.runtime.tiling.tiles import (
    BATCHES_AHEAD,
    TilePlan,
    Tiles,
    TileShape,
    plan_tiles,
    resample,
)


def all_tiles(tiles: Tiles) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Rows in the order they came, and their tiles (copied: a batch is valid until the next)."""
    batches = [(batch.rows.copy(), batch.tiles.copy()) for batch in tiles]
    return np.concatenate([rows for rows, _ in batches]), np.concatenate([pixels for _, pixels in batches])


# What a tile is


@settings(quick, max_examples=40)
@given(
    xy=hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.floats(-150, 500)),
    size=st.integers(1, 130),
    workers=st.integers(1, 3),
    batch=st.integers(1, 5),
)
@pytest.mark.parametrize("layout", ["tiled deflate", "plain strips", "planar tiles"])
def test_level_0_tiles_are_numpy_slices(
    tmp_path_factory: pytest.TempPathFactory,
    layout: str,
    xy: NDArray[np.float64],
    size: int,
    workers: int,
    batch: int,
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"tiles {layout}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{layout}.tif"
    if not path.exists():
        write_layout(folder, layout)
    image = tissue()
    with open_slide(path) as slide:
        tiles = Tiles(slide, xy, TileShape(size, None, PAD), batch_size=batch, workers=workers)
        rows, pixels = all_tiles(tiles)
    assert sorted(rows.tolist()) == list(range(len(xy)))
    for row, tile in zip(rows, pixels, strict=True):
        # The published scripts: floor of the pixel, half the tile before it.
        x, y = int(np.floor(xy[row, 0])) - size // 2, int(np.floor(xy[row, 1])) - size // 2
        np.testing.assert_array_equal(tile, cut(image, x, y, size, size))


def test_tiles_of_a_reduced_level(tmp_path: Path) -> None:
    path, levels = write_layout(tmp_path, "tiled deflate")
    with open_slide(path) as slide:
        tiles = Tiles(
            slide, np.array([[201.0, 150.0]]), TileShape(50, 1.0), batch_size=4, workers=1, slide_mpp=0.5
        )
        assert tiles.plan == TilePlan(level=1, read_px=50, size_px=50, level_mpp=1.0)
        (batch,) = tiles
    np.testing.assert_array_equal(batch.tiles[0], levels[1][50:100, 75:125])


@pytest.mark.slow
def test_real_slide_tiles_equal_openslide(slides: Path) -> None:
    import openslide

    path = slides / "CMU-1-Small-Region.svs"
    xy = np.random.default_rng(3).uniform((0, 0), (2220, 2967), (60, 2))
    with open_slide(path) as slide, openslide.OpenSlide(path) as oracle:
        rows, pixels = all_tiles(Tiles(slide, xy, TileShape(224), batch_size=16, workers=2))
        for row, tile in zip(rows, pixels, strict=True):
            x, y = (int(v) - 112 for v in np.floor(xy[row]))
            theirs = np.asarray(oracle.read_region((x, y), 0, (224, 224)))
            np.testing.assert_array_equal(tile, np.where(theirs[..., 3:] == 255, theirs[..., :3], 0))


# Which level, how resampled


@pytest.mark.parametrize(
    ("mpp", "levels", "target", "plan", "words"),
    [
        (0.25, (1.0, 4.0, 16.0), None, TilePlan(0, 224, 224, None), "as they are"),
        (0.5, (1.0, 4.0), 0.5, TilePlan(0, 224, 224, 0.5), "as they are"),
        (
            0.25,
            (1.0, 4.0, 16.0),
            0.5,
            TilePlan(0, 448, 224, 0.25),
            "448 px of level 0 (0.25 µm/px) reduced to 224 px",
        ),
        (0.25, (1.0, 4.0, 16.0), 1.0, TilePlan(1, 224, 224, 1.0), "level 1"),
        (0.2525, (1.0, 4.0, 16.0), 1.0, TilePlan(1, 222, 224, 1.01), "enlarged"),
        (0.26, (1.0, 4.0, 16.0), 1.0, TilePlan(0, 862, 224, 0.26), "reduced"),
        (0.25, (1.0, 2.0, 4.0), 0.9, TilePlan(1, 403, 224, 0.5), "reduced"),
        (2.0, (1.0, 4.0), 0.5, TilePlan(0, 56, 224, 2.0), "enlarged"),
    ],
)
def test_the_level_read(
    mpp: float, levels: tuple[float, ...], target: float | None, plan: TilePlan, words: str
) -> None:
    chosen = plan_tiles(FormulaSlide(levels, mpp), TileShape(224, target))
    assert (chosen.level, chosen.read_px, chosen.size_px) == (plan.level, plan.read_px, plan.size_px)
    assert chosen.level_mpp == pytest.approx(plan.level_mpp)
    assert words in str(chosen)


def test_mpp_given_outweighs_the_slide_and_none_is_an_error() -> None:
    shape = TileShape(224, 0.5)
    assert plan_tiles(FormulaSlide(mpp=0.25), shape, 0.5).read_px == 224
    with pytest.raises(SlideError, match="--mpp"):
        plan_tiles(FormulaSlide(), shape)


@quick
@given(
    pixels=hnp.arrays(np.uint8, st.sampled_from([(12, 12, 3), (36, 36, 3)])),
    size=st.sampled_from([3, 4, 6, 12]),
)
def test_reducing_by_a_whole_number_is_the_mean_over_blocks(pixels: NDArray[np.uint8], size: int) -> None:
    block = len(pixels) // size
    means = pixels.reshape(size, block, size, block, 3).mean((1, 3), dtype=np.float64)
    # Pillow's fixed point rounds down where the sum is a half step above a half.
    assert np.abs(resample(pixels, size) - means).max() <= 0.5 + 0.5 / block**2 + 1e-9


@pytest.mark.parametrize(("side", "size"), [(449, 224), (226, 224), (300, 224), (222, 224), (56, 224)])
def test_resampling_moves_nothing(side: int, size: int) -> None:
    """A ramp stays the same ramp: pixel centers at (i + ½) side / size, wherever the edge has no say."""
    ramp = np.repeat(np.linspace(0, 255, side)[None, :, None], side, axis=0).repeat(3, axis=2)
    resampled = resample(np.rint(ramp).astype(np.uint8), size)
    centers = (np.arange(size) + 0.5) * side / size - 0.5
    inner = slice(size // 16, -size // 16)
    assert np.abs(resampled[size // 2, inner, 0] - centers[inner] * 255 / (side - 1)).max() <= 1.6
    np.testing.assert_array_equal(resampled, resampled[:1].repeat(size, axis=0))


def test_reduced_tiles_come_through_the_batches(tmp_path: Path) -> None:
    image = tissue()
    Image.fromarray(image).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        tiles = Tiles(
            slide, np.array([[200.7, 150.2]]), TileShape(40, 1.0), batch_size=2, workers=2, slide_mpp=0.5
        )
        (batch,) = tiles
    box = image[110:190, 160:240].reshape(40, 2, 40, 2, 3).mean((1, 3), dtype=np.float64)
    assert np.abs(batch.tiles[0] - box).max() <= 0.5


# Batches


def test_every_row_once_in_one_order_whatever_the_workers() -> None:
    xy = scattered(101)
    runs = [all_tiles(Tiles(FormulaSlide(), xy, TileShape(32), batch_size=16, workers=w)) for w in (1, 2, 7)]
    assert sorted(runs[0][0].tolist()) == list(range(101))
    for rows, pixels in runs[1:]:
        np.testing.assert_array_equal(rows, runs[0][0])
        np.testing.assert_array_equal(pixels, runs[0][1])


def test_batches_are_full_but_the_last_and_can_be_read_again() -> None:
    tiles = Tiles(FormulaSlide(), scattered(50), TileShape(8), batch_size=16, workers=2)
    for _ in range(2):
        assert [len(batch.rows) for batch in tiles] == [16, 16, 16, 2]
    assert tiles.seconds_reading > 0
    assert list(Tiles(FormulaSlide(), np.empty((0, 2)), TileShape(8), batch_size=4, workers=1)) == []


def test_a_batch_stays_valid_until_the_next_is_asked_for() -> None:
    slide = FormulaSlide()
    xy = scattered(200)
    for batch in Tiles(slide, xy, TileShape(16), batch_size=8, workers=3):
        time.sleep(0.002)  # the readers run ahead meanwhile
        for row, tile in zip(batch.rows, batch.tiles, strict=True):
            x, y = (int(v) - 8 for v in np.floor(xy[row]))
            np.testing.assert_array_equal(tile, slide.read(x, y, 16, 16))


def test_readers_stay_a_few_batches_ahead() -> None:
    slide = FormulaSlide()
    tiles = iter(Tiles(slide, scattered(1000), TileShape(8), batch_size=10, workers=2))
    for number in range(1, 6):
        next(tiles)
        time.sleep(0.05)
        assert 10 * number <= slide.reads <= 10 * (number - 1 + BATCHES_AHEAD)


def test_neighbours_are_decoded_together(tmp_path: Path) -> None:
    """A dense grid over a slide of many tiles, with a cache of four rows of them: each is decoded once."""
    image = tissue(1280, 1280)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(64, 64), compression="zlib")
    xy = np.stack(np.meshgrid(np.arange(20, 1270, 24.0), np.arange(20, 1270, 24.0)), axis=-1).reshape(-1, 2)
    shuffled = np.random.default_rng(0).permutation(xy)
    with open_slide(tmp_path / "a.tif") as slide:
        cache = slide.cache  # type: ignore[attr-defined]
        cache.limit = 4 * 20 * 64 * 64 * 3
        rows, _ = all_tiles(Tiles(slide, shuffled, TileShape(56), batch_size=64, workers=2))
        assert len(rows) == len(xy)
        assert cache.decoded == 20 * 20


# Failures


def test_unreadable_tiles_are_named_and_all_others_come(slides: Path) -> None:
    xy = np.stack(np.meshgrid(np.arange(700, 1500, 100.0), np.arange(900, 1700, 100.0)), axis=-1).reshape(
        -1, 2
    )
    over = ((xy + 50 > (960, 1200)) & (xy - 50 < (1200, 1440))).all(axis=1)
    with (
        open_slide(slides / "CMU-1-Small-Region.onebadtile.svs") as bad,
        open_slide(slides / "CMU-1-Small-Region.svs") as good,
    ):
        batches: list[TileBatch] = []
        for batch in Tiles(bad, xy, TileShape(100), batch_size=7, workers=2):
            for row, tile in zip(batch.rows, batch.tiles, strict=True):
                x, y = (int(v) - 50 for v in xy[row])
                np.testing.assert_array_equal(tile, good.read(x, y, 100, 100))
            batches.append(batch)
    failed = {row: reason for batch in batches for row, reason in batch.failed}
    assert sorted(failed) == np.flatnonzero(over).tolist()
    assert all("column 4, row 5 of level 0" in reason for reason in failed.values())
    read = [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(read) == np.flatnonzero(~over).tolist()


def test_a_batch_may_hold_failures_alone() -> None:
    slide = FormulaSlide()
    slide.fault = TileReadError("spoilt")
    (batch,) = Tiles(slide, scattered(5), TileShape(8), batch_size=8, workers=2)
    assert batch.tiles.shape == (0, 8, 8, 3)
    assert sorted(batch.failed) == [(row, "spoilt") for row in range(5)]


@pytest.mark.parametrize("fault", [SlideError("the slide is gone"), RuntimeError("a bug")])
def test_what_goes_wrong_in_a_reader_surfaces(fault: Exception) -> None:
    slide, before = FormulaSlide(), reading_threads()
    tiles = iter(Tiles(slide, scattered(500), TileShape(8), batch_size=8, workers=3))
    next(tiles)
    slide.fault = fault
    with pytest.raises(type(fault), match=str(fault)):
        for _ in tiles:
            pass
    assert reading_threads() <= before
    assert slide.reads < 500


def test_no_thread_outlives_a_consumer_that_stops_early() -> None:
    slide, before = FormulaSlide(), reading_threads()
    for batch in Tiles(slide, scattered(500), TileShape(8), batch_size=8, workers=4):
        assert len(batch.rows) == 8
        break
    assert reading_threads() <= before
    assert slide.reads <= 8 * BATCHES_AHEAD


def test_no_thread_outlives_a_consumer_that_raises() -> None:
    def consume() -> None:
        for _ in Tiles(FormulaSlide(), scattered(500), TileShape(8), batch_size=8, workers=4):
            raise KeyboardInterrupt

    before = reading_threads()
    with pytest.raises(KeyboardInterrupt) as stop:
        consume()
    # While the traceback is held, so is the generator; it must not keep the interpreter from ending either.
    stop.value.__traceback__ = None
    del stop
    assert reading_threads() <= before


def test_an_interpreter_with_tiles_half_read_ends() -> None:
    import subprocess
    import sys

    code = (
        "import numpy as np; from formula_slide import FormulaSlide, scattered; from "
        "mclst.runtime.tiling.tiles import *;"
        "it = iter(Tiles(FormulaSlide(), scattered(500), TileShape(8), batch_size=8, workers=4)); next(it)"
    )
    folder = str(Path(__file__).parents[2] / "support")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_places_that_are_none_are_refused() -> None:
    for bad in (np.nan, np.inf, 1e30, -(2.0**31)):
        with pytest.raises(SpotsError, match="spot 1"):
            Tiles(FormulaSlide(), np.array([[5.0, 5.0], [5.0, bad]]), TileShape(8), batch_size=1, workers=1)
    with pytest.raises(ValueError, match="shape"):
        Tiles(FormulaSlide(), np.zeros((3, 3)), TileShape(8), batch_size=1, workers=1)
    with pytest.raises(ValueError, match="1 or more"):
        Tiles(FormulaSlide(), np.zeros((3, 2)), TileShape(8), batch_size=0, workers=1)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("name", ["tiled jpeg", "deflate strips"])
@pytest.mark.slow
def test_each_segment_is_decoded_once_and_let_go_after_its_last_tile(
    tmp_path: Path, name: str, workers: int
) -> None:
    path, (image, *_) = write_layout(tmp_path, name)
    xy_px = np.random.default_rng(1).uniform((-30, -30), (450, 330), (400, 2))
    with open_slide(path) as slide:
        assert isinstance(slide, SegmentedSlide)
        tiles = Tiles(slide, xy_px, TileShape(50, pad=PAD), batch_size=8, workers=workers)
        rows, pixels = all_tiles(tiles)
        level = slide.levels[0]
        needed = {
            (x // level.segment_px[0], y // level.segment_px[1])
            for left, top in np.floor(xy_px).astype(int) - 25
            for x in range(max(left, 0), min(left + 50, level.width_px))
            for y in range(max(top, 0), min(top + 50, level.height_px))
        }
        assert slide.cache.decoded == len(needed)
        assert slide.cache.held_bytes == 0
        assert slide.cache.peak_bytes < image.nbytes
    for row, tile in zip(rows, pixels, strict=True):
        x, y = np.floor(xy_px[row]).astype(int) - 25
        assert np.array_equal(tile, cut(image, int(x), int(y), 50, 50))
