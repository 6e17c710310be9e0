"""Area means against Pillow's box filter and against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mclst.runtime.decoding.area_mean import area_mean, area_mean_by_numpy, compiled, window_edges

SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))
WAYS = [
    area_mean_by_numpy,
    pytest.param(area_mean, marks=pytest.mark.skipif(compiled() is None, reason="not compiled")),
]


@pytest.mark.parametrize("reduce", WAYS)
@given(size=SIZES, reduced=SIZES, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_means_are_exact_and_windows_are_those_of_pillow(
    reduce: Any, size: tuple[int, int], reduced: tuple[int, int], seed: int
) -> None:
    (height, width), (high, wide) = size, np.minimum(size, reduced).tolist()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    rows, columns = window_edges(height, high), window_edges(width, wide)
    out = reduce(pixels, rows, columns)
    row, column = seed % high, seed % wide
    window = pixels[rows[row] : rows[row + 1], columns[column] : columns[column + 1], 1]
    assert out[row, column, 1] == floor(Fraction(int(window.sum(dtype=int)), window.size) + Fraction(1, 2))
    if _has_ties(height, high) or _has_ties(width, wide):
        return  # Pillow's floating-point bounds go either way
    of_pillow = np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BOX))
    assert np.abs(out.astype(int) - of_pillow).max() <= 1


def _has_ties(size: int, reduced: int) -> bool:
    return any((2 * i * size + reduced) % (2 * reduced) == 0 for i in range(1, reduced))


@pytest.mark.parametrize("reduce", WAYS)
@pytest.mark.parametrize("area", [1, 2, 3, 5, 7, 9, 31, 121, 253, 255, 256, 257, 300])
def test_sums_next_to_a_half_are_rounded_right(reduce: Any, area: int) -> None:
    """For each level of 255, the sums just below, at and above what is rounded up to it."""
    totals = (np.arange(1, 256) * area - area // 2)[:, None] + [-1, 0, 1]
    totals = np.clip(totals.ravel(), 0, 255 * area)
    pixels = (totals[:, None] // area + (np.arange(area) < totals[:, None] % area)).astype(np.uint8)
    got = reduce(np.repeat(pixels[..., None], 3, axis=2), np.arange(len(pixels) + 1), np.array([0, area]))
    expected = (totals + area // 2) // area
    np.testing.assert_array_equal(got, np.repeat(expected[:, None, None], 3, axis=2))


@pytest.mark.parametrize("reduce", WAYS)
@pytest.mark.parametrize(("height", "width"), [(300, 2), (2, 40_000), (300, 60_000)])
def test_large_windows_keep_their_mean(reduce: Any, height: int, width: int) -> None:
    """Their sums pass 16 and 32 bits."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[: height // 2] = 254
    assert reduce(pixels, window_edges(height, 1), window_edges(width, 1)).tolist() == [[[255, 255, 255]]]
    pixels[:, 0] = 0
    assert reduce(pixels, window_edges(height, 1), window_edges(width, 1)).tolist() != [[[255, 255, 255]]]
