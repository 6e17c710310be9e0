"""Blocks of a JPEG and its overview from one pass, against Pillow's pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profile import quick
from PIL import Image
from synthetic_slides import tissue

from mclst.runtime.decoding import blocks
from mclst.runtime.decoding.area_mean import area_mean_by_numpy, window_edges
from mclst.runtime.decoding.blocks import Blocks, Unusual, keep_blocks, marked_blocks
from mclst.runtime.decoding.jpeg import decode_jpeg

compiled = pytest.mark.skipif(
    not blocks.can_keep_blocks(), reason="the part is not compiled here, or there is no libjpeg-turbo"
)
KINDS: list[dict[str, Any]] = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2, "quality": 30},
    {"progressive": True},
    {"restart_marker_blocks": 3},
    {"optimize": True},
]
SIZES = st.tuples(st.integers(1, 150), st.integers(1, 150))


def stream(width: int, height: int, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tissue(height, width)).save(file, "JPEG", **options)
    return file.getvalue()


@compiled
@settings(quick, max_examples=80)
@given(
    size=SIZES,
    kind=st.sampled_from(KINDS),
    corners=st.lists(st.tuples(st.integers(-60, 160), st.integers(-60, 160)), min_size=1, max_size=6),
    side=st.integers(1, 50),
    reduced=SIZES,
    block=st.sampled_from([8, 13, 40]),
    band=st.sampled_from([1, 2000, 20_000]),
)
def test_blocks_and_overview_are_those_of_the_whole_picture(
    size: tuple[int, int],
    kind: dict[str, Any],
    corners: list[tuple[int, int]],
    side: int,
    reduced: tuple[int, int],
    block: int,
    band: int,
) -> None:
    (width, height), places = size, np.array(corners, np.int64)
    small = (min(reduced[0], width), min(reduced[1], height))
    data = stream(width, height, **kind)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_PX", block)
        patch.setattr(blocks, "BAND_BYTES", band)
        marked = marked_blocks(size, places, side)
        kept, overview = keep_blocks(data, size, marked, small)
        alone, none = keep_blocks(data, size, marked, None)
        assert none is None
        np.testing.assert_array_equal(
            overview,
            area_mean_by_numpy(expected, window_edges(height, small[1]), window_edges(width, small[0])),
        )
        needed = np.zeros_like(marked)
        for x, y in np.concatenate([places, [[0, 0]]]).tolist():
            left, top, right, bottom = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
            if left >= right or top >= bottom:
                continue
            under = np.s_[top // block : (bottom - 1) // block + 1, left // block : (right - 1) // block + 1]
            if [x, y] in places.tolist():
                needed[under] = True
            for picture in (kept, alone):
                pixels = np.zeros((bottom - top, right - left, 3), np.uint8)
                assert picture.read(pixels, left, top) == marked[under].all()
                if marked[under].all():
                    np.testing.assert_array_equal(pixels, expected[top:bottom, left:right])
    np.testing.assert_array_equal(marked, needed)


@compiled
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_damaged_anywhere_gives_nothing_but_the_right_pixels(kind: dict[str, Any]) -> None:
    """Each place is tried with bytes cut off, and with noise; a stream may be whole in spite of noise."""
    size, data = (90, 70), stream(90, 70, **kind)
    marked = marked_blocks(size, np.array([[0, 0]]), 90)
    refused = 0
    for place in range(2, len(data), max(1, len(data) // 60)):
        noise = bytearray(data)
        noise[place] ^= 0x5A
        for damaged in (data[:place], bytes(noise)):
            try:
                kept, _ = keep_blocks(damaged, size, marked, None)
            except Unusual:
                refused += 1
                continue
            pixels = np.zeros((70, 90, 3), np.uint8)
            assert kept.read(pixels, 0, 0) and len(damaged) == len(data)
            np.testing.assert_array_equal(pixels, decode_jpeg(damaged))
    assert refused >= 60


@compiled
def test_other_sizes_and_colors_than_the_header_says_are_refused() -> None:
    gray = io.BytesIO()
    Image.fromarray(tissue(40, 50)).convert("L").save(gray, "JPEG")
    for data, size in ((stream(50, 40), (50, 39)), (stream(50, 40), (60, 40)), (gray.getvalue(), (50, 40))):
        with pytest.raises(Unusual):
            keep_blocks(data, size, marked_blocks(size, np.array([[0, 0]]), 8), None)


def test_marks_of_many_squares_need_no_loop_over_them() -> None:
    rng = np.random.default_rng(0)
    size, corners = (5000, 3000), rng.integers(-300, 5200, (2000, 2))
    marked = marked_blocks(size, corners, 200)
    expected = np.zeros((3000, 5000), np.bool_)
    for x, y in corners.tolist():
        expected[max(y, 0) : max(y + 200, 0), max(x, 0) : max(x + 200, 0)] = True
    for row, column in np.ndindex(marked.shape):
        under = expected[row * 128 : (row + 1) * 128, column * 128 : (column + 1) * 128]
        assert marked[row, column] == under.any()
    assert not Blocks(size, np.zeros_like(marked)).read(np.zeros((3, 3, 3), np.uint8), 5, 5)
