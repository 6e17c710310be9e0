"""The values of a page: within the stated error for any map, and within the size limit."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import PageReader
from scipy.ndimage import gaussian_filter
from synthetic_maps import synthetic_map

from mclst.runtime.cli.report import main
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.report.page import layers, slide_page
from mclst.runtime.report.page.openseadragon import VIEWER_PATH
from mclst.runtime.report.page.slide_page import write_slide_page
from mclst.runtime.report.page.subsample import MAX_SPOTS, subsample

with_viewer = pytest.mark.skipif(
    not VIEWER_PATH.is_file(), reason="OpenSeadragon was not fetched when mclst was installed"
)


def field(kind: str, side: int, genes: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    n = side * side
    if kind == "noise":
        values = rng.normal(size=(n, genes))
    elif kind == "zeros":
        values = rng.poisson(0.3, (n, genes)).astype(float)
    elif kind == "constant":
        values = np.full((n, genes), 3.25)
        values[:, ::2] += rng.normal(size=(n, genes))[:, ::2]
    else:
        smooth = np.stack(
            [gaussian_filter(rng.normal(size=(side, side)), side / 8).ravel() for _ in range(4)], 1
        )
        values = smooth @ rng.gamma(0.5, size=(4, genes)) * 100
        if kind == "spike":
            values[rng.integers(0, n, 9), rng.integers(0, genes, 9)] = 1e4
        elif kind == "holes":
            values[rng.integers(0, n, 99), rng.integers(0, genes, 99)] = np.nan
            values[7] = np.nan
    return values.astype(np.float32)


def largest_errors(values: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Largest error of each gene as a share of its range; both are missing at the same spots."""
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    expected = expected.astype(float)
    span = np.nanmax(expected, axis=0) - np.nanmin(expected, axis=0)
    return np.nanmax(np.abs(values - expected), axis=0) / np.where(span > 0, span, 1)


def stated_percent(text: str) -> float:
    match = re.search(r"off by at most ([\d.e-]+) %", text)
    assert match is not None
    return float(match[1])


@with_viewer
@pytest.mark.parametrize("kind", ["noise", "zeros", "constant", "smooth", "spike", "holes"])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.slow
def test_every_value_is_within_half_a_step(
    kind: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(slide_page, "MAX_FINE_VALUES", 1000)
    made = synthetic_map(tmp_path / "made.h5ad", side=24, genes=40)
    measured = field("noise", 24, 40)
    measured[[3, 99]] = np.nan
    with open_map(made.path) as opened:
        expression_map = replace(opened, expression=field(kind, 24, 40))
        expected, order = np.asarray(expression_map.expression), expression_map.order
        assert write_slide_page(expression_map, tmp_path / "slide.html", measured=measured) == ()
    page = PageReader(tmp_path / "slide.html")
    for name, true in (("predicted", expected), ("measured", measured)):
        steps = page.layer(name)["steps"]
        assert steps == (254 if large else 65_534)
        assert (largest_errors(page.values(name), true[:, order]) <= 0.5 / steps + 1e-7).all()
        assert stated_percent(page.text) == pytest.approx(50 / steps, rel=0.05)


@with_viewer
@pytest.mark.parametrize("batch", [1, 7 * 576, 10**9])
def test_a_page_above_its_limit_keeps_the_most_structured_and_the_named_genes(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "BATCH_VALUES", batch)
    made = synthetic_map(tmp_path / "made.h5ad", side=24, genes=200)
    with open_map(made.path) as expression_map:
        ranked = [made.genes[gene] for gene in expression_map.order]
        write_slide_page(expression_map, tmp_path / "all.html")
        limit = (tmp_path / "all.html").stat().st_size - 150_000
        named = [ranked[-3], ranked[5]]
        notes = write_slide_page(
            expression_map, tmp_path / "slide.html", max_bytes=limit, required_genes=named
        )
    size = (tmp_path / "slide.html").stat().st_size
    page = PageReader(tmp_path / "slide.html")
    genes = page.metadata["genes"]
    assert limit - 10_000 < size <= limit
    assert genes == [*ranked[: len(genes) - 1], ranked[-3]]
    left_out = f"{200 - len(genes):,} of 200 genes are left out"
    assert len(notes) == 1 and notes[0].startswith(f"slide.html: {left_out}")
    assert left_out in page.text and f"200 genes ({len(genes)} in this page)" in page.text
    expected = made.expression[:, [made.genes.index(gene) for gene in genes]]
    assert largest_errors(page.values("predicted"), expected).max() < 1e-5


@with_viewer
def test_the_command_notes_the_genes_that_a_page_leaves_out(tmp_path: Path) -> None:
    made = synthetic_map(tmp_path / "made.h5ad", genes=5)
    done = CliRunner().invoke(main, [str(made.path), "--html-mb", "0", "--plot", "GENE3,GENE4"])
    assert done.exit_code == 0, done.output
    assert "Note: made.html: 3 of 5 genes are left out" in done.stderr and "--html-mb" in done.stderr
    assert sorted(PageReader(tmp_path / "made.html").metadata["genes"]) == ["GENE3", "GENE4"]
    words = [str(made.path), "--html-mb", "0", "--overwrite", "-q"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0 and done.stderr == ""
    assert PageReader(tmp_path / "made.html").metadata["genes"] == ["GENE0"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 400), st.floats(0.3, 50))
def test_a_subsampled_grid_keeps_one_spot_of_each_square(
    columns: int, rows: int, limit: int, pitch: float
) -> None:
    y, x = np.divmod(np.arange(rows * columns), columns)
    xy = (np.stack([x, y], axis=1) + 0.5) * pitch
    sample = subsample(xy, pitch, limit)
    assert 1 <= len(sample.indices) <= limit and (np.diff(sample.indices) > 0).all()
    if rows * columns <= limit:
        assert sample.stride == 1 and len(sample.indices) == rows * columns
        return
    squares = np.stack([x, y], axis=1)[sample.indices] // sample.stride
    assert len(np.unique(squares, axis=0)) == len(sample.indices)
    assert len(sample.indices) == -(-columns // sample.stride) * -(-rows // sample.stride)
    smaller = sample.stride - 1
    assert smaller < 2 or -(-columns // smaller) * -(-rows // smaller) > limit


@with_viewer
def test_a_page_of_more_spots_than_it_shows_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = synthetic_map(tmp_path / "made.h5ad", side=30, genes=5, grid=True)
    monkeypatch.setattr(slide_page, "subsample", lambda xy, pitch: subsample(xy, pitch, 100))
    with open_map(made.path) as expression_map:
        write_slide_page(expression_map, tmp_path / "slide.html")
        order = expression_map.order
    page = PageReader(tmp_path / "slide.html")
    spots = [made.spots.index(name) for name in page.spots]
    assert len(spots) == 100 and page.metadata["spot_diameter_px"] == 180
    np.testing.assert_allclose(page.xy_px, made.xy_px[spots], rtol=1e-6)
    values = page.values("predicted")
    span = np.nanmax(values) - np.nanmin(values)
    np.testing.assert_allclose(values, made.expression[spots][:, order], atol=1e-4 * span)
    np.testing.assert_allclose(page.values("nearest_distance")[:, 0], made.nearest[spots], atol=1e-3)
    text = html.unescape(page.text)
    assert "100 of the map's 900 spots" in text and "each square of 90 µm" in text
    assert "900 spots on a grid of 30 µm (100 in this page)" in text
    assert MAX_SPOTS == 100_000


@with_viewer
def test_a_map_of_other_software_is_not_called_predicted(tmp_path: Path) -> None:
    made = synthetic_map(tmp_path / "made.h5ad")
    for strange, measured, label in (
        (False, None, "Predicted expression"),
        (True, None, "Expression"),
        (True, made.expression, "Predicted expression"),
    ):
        with open_map(made.path) as expression_map:
            shown = replace(expression_map, provenance={}) if strange else expression_map
            write_slide_page(shown, tmp_path / "page.html", measured=measured)
        page = PageReader(tmp_path / "page.html")
        assert page.metadata["layers"][0]["label"] == label
