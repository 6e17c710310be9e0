"""The values of a large map's page: within the bound it states, whatever the map, and few bytes where maps are smooth."""

from __future__ import annotations

import html
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import PageReader, whole_numbers
from scipy.ndimage import gaussian_filter
from synthetic_maps import made_map

from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.report.page import layers
from mclst.runtime.report.page import subsample as thinning
from mclst.runtime.report.page.entropy_coding import squeeze
from mclst.runtime.report.page.layers import Layer, pack_genes
from mclst.runtime.report.page.openseadragon import PLACE
from mclst.runtime.report.page.packing import Packed
from mclst.runtime.report.page.prediction import spots_before
from mclst.runtime.report.page.slide_page import write_slide_page
from mclst.runtime.report.page.subsample import subsample

with_viewer = pytest.mark.skipif(
    not PLACE.is_file(), reason="OpenSeadragon was not fetched when mclst was installed"
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, 3) | st.integers(-300, 300) | st.integers(-(2**40), 2**40), max_size=70))
def test_whole_numbers_come_back(numbers: list[int]) -> None:
    stream = squeeze(np.array(numbers, np.int64))
    assert whole_numbers(zlib.decompress(stream), len(numbers)) == numbers


def test_small_numbers_take_little_more_than_their_entropy() -> None:
    for spread in (0.3, 0.5, 1.0, 5.0):
        numbers = np.rint(np.random.default_rng(3).normal(size=30_000) * spread).astype(np.int64)
        share = np.unique(numbers, return_counts=True)[1] / len(numbers)
        assert len(squeeze(numbers)) * 8 / len(numbers) < 1.12 * -(share @ np.log2(share)) + 0.05


def test_the_spots_before_one_on_a_grid_are_the_row_above_and_the_left() -> None:
    y, x = np.divmod(np.arange(20), 5)
    before = spots_before(np.stack([x, y], axis=1) * 26.9)
    assert before[12].tolist() == [7, 11, 6, 8] and before[0].tolist() == [-1] * 4
    assert (before < np.arange(20)[:, None]).all()
    assert spots_before(np.zeros((1, 2))).tolist() == [[-1] * 4]
    scattered = np.random.default_rng(0).uniform(0, 100, (300, 2))
    found = spots_before(scattered)
    far = ((scattered[:, None] - scattered[None]) ** 2).sum(axis=2)
    for spot in range(300):
        nearest = np.argsort(far[spot])[1:9]
        wanted = [int(other) for other in nearest if other < spot][:4]
        assert found[spot].tolist() == wanted + [-1] * (4 - len(wanted))


def field(kind: str, side: int, genes: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    n = side * side
    if kind == "noise":
        found = rng.normal(size=(n, genes))
    elif kind == "zeros":
        found = rng.poisson(0.3, (n, genes)).astype(float)
    elif kind == "constant":
        found = np.full((n, genes), 3.25)
        found[:, ::2] += rng.normal(size=(n, genes))[:, ::2]
    else:
        smooth = np.stack(
            [gaussian_filter(rng.normal(size=(side, side)), side / 8).ravel() for _ in range(4)], 1
        )
        found = smooth @ rng.gamma(0.5, size=(4, genes)) * 100
        if kind == "spike":
            found[rng.integers(0, n, 9), rng.integers(0, genes, 9)] = 1e4
    return found.astype(np.float32)


@with_viewer
@pytest.mark.parametrize("kind", ["noise", "zeros", "constant", "smooth", "spike", "holes"])
@pytest.mark.parametrize("budget", [0, 10**9])
def test_every_value_is_within_half_a_step(
    kind: str, budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "MOST_FINE", 1000)
    made = made_map(tmp_path / "made.h5ad", side=24, genes=40)
    with open_map(made.path) as found:
        if kind != "holes":  # the made-up map has a spot without values
            object.__setattr__(found, "expression", field(kind, 24, 40))
        expression = np.asarray(found.expression)[:, found.order]
        write_slide_page(found, tmp_path / "slide.html", most_bytes=budget)
    page = PageReader(tmp_path / "slide.html")
    layer, told = page.layer("predicted"), page.values("predicted")
    assert layer["compact"] is not None and layer["steps"] == (14 if budget == 0 else 254)
    span = np.nanmax(expression, axis=0).astype(float) - np.nanmin(expression, axis=0)
    np.testing.assert_allclose(layer["step"], span / layer["steps"], rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(told), np.isnan(expression))
    off = np.nanmax(np.abs(told - expression), axis=0)
    assert (
        off <= 0.5 * span / layer["steps"] + 1e-5 * span + 1e-6 * np.abs(np.nanmax(expression, axis=0))
    ).all()
    text = (tmp_path / "slide.html").read_text()
    assert f"by at most {50 / layer['steps']:.2g} % of their gene" in text


@with_viewer
def test_measured_and_predicted_are_each_told_as_exactly_as_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "MOST_FINE", 1000)
    made = made_map(tmp_path / "made.h5ad", side=24, genes=40)
    measured = field("noise", 24, 40)
    measured[[3, 99]] = np.nan
    with open_map(made.path) as found:
        object.__setattr__(found, "expression", field("smooth", 24, 40))
        expression, order = np.asarray(found.expression), found.order
        write_slide_page(found, tmp_path / "slide.html", measured=measured, most_bytes=40_000)
    page, words = PageReader(tmp_path / "slide.html"), []
    for name, true in (("predicted", expression), ("measured", measured)):
        told, true, steps = page.values(name), true[:, order], page.layer(name)["steps"]
        span = np.nanmax(true, axis=0) - np.nanmin(true, axis=0)
        np.testing.assert_array_equal(np.isnan(told), np.isnan(true))
        assert (np.nanmax(np.abs(told - true), axis=0) <= (0.5 / steps + 1e-5) * span).all()
        words.append(f"{50 / steps:.2g} % ({name})")
    assert page.layer("predicted")["steps"] > page.layer("measured")["steps"]
    assert f"by at most {' and '.join(words)} of their gene" in (tmp_path / "slide.html").read_text()


@pytest.mark.slow
def test_a_smooth_map_takes_a_fraction_of_what_noise_takes() -> None:
    y, x = np.divmod(np.arange(60 * 60), 60)
    xy = np.stack([x, y], axis=1).astype(float)
    sizes = {}
    for kind in ("smooth", "noise"):
        packed, layer = Packed(), Layer("predicted", "", genes=True)
        pack_genes(layer, field(kind, 60, 300), xy, packed, 600_000)
        sizes[kind] = packed.length, layer.steps
    assert sizes["smooth"][0] < 0.6 * sizes["noise"][0] and sizes["smooth"][1] > sizes["noise"][1]
    assert sizes["smooth"][0] <= 600_000


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_map_with_single_values_missing_is_told_too(odd: float) -> None:
    values = field("noise", 40, 700)
    values[5, 7] = odd
    packed, layer = Packed(), Layer("measured", "", genes=True)
    blocks = pack_genes(layer, values.copy(), np.random.default_rng(0).uniform(size=(1600, 2)), packed, 1e6)
    assert layer.compact is None and layer.steps == 254 and list(blocks) == ["measured"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 400), st.floats(0.3, 50))
def test_a_thinned_grid_keeps_one_of_each_square(columns: int, rows: int, most: int, pitch: float) -> None:
    y, x = np.divmod(np.arange(rows * columns), columns)
    xy = (np.stack([x, y], axis=1) + 0.5) * pitch
    shown = subsample(xy, pitch, most)
    assert 1 <= len(shown.places) <= most and (np.diff(shown.places) > 0).all()
    if rows * columns <= most:
        assert shown.every == 1 and len(shown.places) == rows * columns
        return
    squares = np.stack([x, y], axis=1)[shown.places] // shown.every
    assert len(np.unique(squares, axis=0)) == len(shown.places)
    assert len(shown.places) == -(-columns // shown.every) * -(-rows // shown.every)
    least = shown.every - 1
    assert least < 2 or -(-columns // least) * -(-rows // least) > most


@with_viewer
def test_a_page_of_more_spots_than_it_shows_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_map(tmp_path / "made.h5ad", side=30, genes=5, grid=True)
    monkeypatch.setattr(
        "mclst.runtime.report.page.slide_page.subsample", lambda xy, pitch: subsample(xy, pitch, 100)
    )
    with open_map(made.path) as found:
        write_slide_page(found, tmp_path / "slide.html")
        order = found.order
    page = PageReader(tmp_path / "slide.html")
    places = [made.spots.index(name) for name in page.spots]
    assert len(places) == 100 and page.told["diameter"] == 180
    np.testing.assert_allclose(page.xy_px, made.xy_px[places], rtol=1e-6)
    told = page.values("predicted")
    span = np.nanmax(told) - np.nanmin(told)
    np.testing.assert_allclose(told, made.expression[places][:, order], atol=1e-4 * span)
    np.testing.assert_allclose(page.values("nearest_distance")[:, 0], made.nearest[places], atol=1e-3)
    text = html.unescape((tmp_path / "slide.html").read_text())
    assert "100 of the map's 900 spots: of each square of 90 µm" in text
    assert "900 places, every 30 µm, 100 of them in this page" in text
    assert thinning.MOST_SPOTS == 100_000
