from __future__ import annotations

import itertools
import os
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mclst.runtime.errors import InputError, OutputError
from mclst.runtime.expression_map.morans_i import morans_i
from mclst.runtime.expression_map.reader import Map, open_map
from mclst.runtime.expression_map.writer import estimate_spot_diameter
from mclst.runtime.report.figures import contact_sheet
from mclst.runtime.report.figures.colors import COLORMAPS
from mclst.runtime.report.figures.contact_sheet import (
    _facts,
    _format_limit,
    _round_length,
    _window,
    write_contact_sheet,
)
from mclst.runtime.report.figures.layout import DPI, WIDTH, GenesLayout
from mclst.runtime.report.figures.raster import RasterPage, _cover
from mclst.runtime.report.figures.style import COLORMAP
from mclst.runtime.report.figures.vector import VectorPage
from mclst.sections.columns import Columns


def moran_by_definition(values, xy, neighbors):
    """One gene, by double sums over a dense weight matrix."""
    n = len(xy)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    weight = np.zeros((n, n))
    for i in range(n):
        weight[i, np.argsort(distance[i])[:neighbors]] = 1.0
    weight /= weight.sum(axis=1, keepdims=True)
    z = values - values.mean()
    return n / weight.sum() * (weight * np.outer(z, z)).sum() / (z**2).sum()


def test_morans_i_is_its_definition():
    rng = np.random.default_rng(0)
    xy = rng.random((80, 2)) * 1000
    values = np.stack([xy[:, 0], np.sin(xy[:, 1] / 100), rng.random(80), rng.random(80) * 1e-30], axis=1)
    for neighbors in (1, 4, 6, 79):
        expected = [moran_by_definition(values[:, g], xy, neighbors) for g in range(4)]
        np.testing.assert_allclose(morans_i(values, xy, neighbors), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_morans_i_is_that_of_squidpy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import squidpy

        rng = np.random.default_rng(1)
        xy = rng.random((150, 2)) * 500
        values = (np.sin(xy @ rng.normal(size=(2, 5)) / 80) + rng.normal(0, 0.5, (150, 5))).astype(np.float64)
        data = anndata.AnnData(values, obsm={"spatial": xy})
        squidpy.gr.spatial_neighbors(data, coord_type="generic", n_neighs=6)
        squidpy.gr.spatial_autocorr(data, mode="moran", n_jobs=1, show_progress_bar=False)
    expected = data.uns["moranI"]["I"].reindex(data.var_names).to_numpy()
    np.testing.assert_allclose(morans_i(values, xy), expected, rtol=1e-7)


def test_structured_genes_rank_above_shuffled_ones():
    x, y = np.meshgrid(np.arange(20.0), np.arange(20.0))
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    rng = np.random.default_rng(2)
    gradient, board = xy[:, 0], (xy.sum(axis=1) % 2)
    moran = morans_i(np.stack([gradient, rng.permutation(gradient), board], axis=1), xy, 4)
    assert moran[0] > 0.85 and abs(moran[1]) < 0.12 and moran[2] < -0.8


def test_constant_genes_have_no_i_and_missing_spots_do_not_count():
    rng = np.random.default_rng(3)
    xy = rng.random((40, 2))
    values = rng.random((40, 300)).astype(np.float32)  # more than one block of genes
    values[:, 299] = 0.1
    holed, keep = values.copy(), np.arange(40) % 7 != 3
    holed[~keep] = np.nan
    moran = morans_i(holed, xy)
    np.testing.assert_array_equal(moran, morans_i(values[keep], xy[keep]))
    assert np.isnan(moran[299]) and np.isfinite(moran[:299]).all()
    assert moran[270] == pytest.approx(moran_by_definition(values[keep, 270].astype(float), xy[keep], 6))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-3, 3)), min_size=0, max_size=12))
def test_morans_i_is_bounded_or_nan_where_spots_coincide(rows):
    data = np.array(rows, dtype=np.float64).reshape(-1, 3)
    (moran,) = morans_i(data[:, 2:], data[:, :2])
    if len(data) < 3 or np.ptp(data[:, 2]) == 0:
        assert np.isnan(moran)
    else:
        assert abs(moran) <= len(data)


def make_map(n_side=6, genes=12, *, diameter=60.0, mpp=None, width=1000, height=800):
    """A grid of spots over a white image; gene g falls with x and y, with more noise the larger g."""
    x, y = np.meshgrid(np.linspace(100, width - 100, n_side), np.linspace(100, height - 100, n_side))
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    noise = np.random.default_rng(4).normal(size=(len(xy), genes)) * np.arange(genes) * 60
    return Map(
        path=Path("synthetic.h5ad"),
        title="synthetic",
        genes=tuple(f"GENE{g}" for g in range(genes)),
        expression=(-xy[:, :1] - 0.7 * xy[:, 1:] + noise).astype(np.float32),
        obs=Columns(np.array([f"spot{i}" for i in range(len(xy))], dtype=object)),
        xy_px=xy,
        image=np.full((height // 10, width // 10, 3), 255, np.uint8),
        image_scale=0.1,
        spot_diameter_px=estimate_spot_diameter(xy) if diameter is None else diameter,
        mpp=mpp,
    )


def drawn(expression_map, path, genes):
    """The PNG's pixels, and a function from a gene's place and level-0 px to pixel row and column."""
    window = _window(expression_map, expression_map.spot_diameter_px)
    page = GenesLayout(genes, (window[1] - window[0]) / (window[3] - window[2]))

    def pixel(place, x, y):
        left, top, across, down = page.boxes[place]
        right = left + (x - window[0]) / (window[1] - window[0]) * across
        below = top + (y - window[2]) / (window[3] - window[2]) * down
        return int(below * DPI), int(right * DPI)

    return np.asarray(Image.open(path).convert("RGB")).astype(int), pixel


def test_spots_have_their_position_size_and_color(tmp_path):
    expression_map = make_map()
    write_contact_sheet(expression_map, tmp_path / "s.png")
    pixels, pixel = drawn(expression_map, tmp_path / "s.png", 8)
    values = expression_map.expression[:, 0]  # the gene of largest I: the first panel
    low, high = np.percentile(values, [1, 99])
    for spot in (0, 3, 17, 35):
        x, y = expression_map.xy_px[spot]
        expected = np.array(COLORMAP(float(np.clip((values[spot] - low) / (high - low), 0, 1)))[:3]) * 255
        np.testing.assert_allclose(pixels[pixel(0, x, y)], expected, atol=6)
        for dx, dy in ((26, 0), (-26, 0), (0, 26), (0, -26)):
            np.testing.assert_allclose(pixels[pixel(0, x + dx, y + dy)], expected, atol=6)
        for dx, dy in ((34, 0), (0, -34), (25, 25)):
            assert pixels[pixel(0, x + dx, y + dy)].min() > 250


@pytest.mark.parametrize(("radius", "line"), [(2.3, None), (6.3, None), (6.3, 1.4)])
def test_discs_and_rings_cover_what_finer_pixels_show(radius, line):
    fine, shape = 32, (20, 24)
    centers = np.array([[9.3, 11.8], [23.5, 2.1]])
    pixel, opacity, spot = _cover(centers, radius, line, shape)
    drawn = np.zeros(shape)
    drawn.flat[pixel] = opacity
    y, x = (np.indices([fine * side for side in shape]) + 0.5) / fine
    covered = np.zeros(shape)
    for cx, cy in centers:
        apart = np.hypot(x - cx, y - cy)
        inside = apart <= radius if line is None else np.abs(apart - radius) <= line / 2
        covered += inside.reshape(shape[0], fine, shape[1], fine).mean(axis=(1, 3))
    np.testing.assert_allclose(drawn, covered, atol=0.16)
    assert drawn.sum() == pytest.approx(covered.sum(), rel=0.04)
    row, column = np.divmod(pixel, shape[1])
    nearer = np.hypot(column + 0.5 - 9.3, row + 0.5 - 11.8) > np.hypot(column + 0.5 - 23.5, row + 0.5 - 2.1)
    np.testing.assert_array_equal(spot, nearer)


def test_of_two_discs_over_a_pixel_the_later_is_seen():
    _, opacity, spot = _cover(np.array([[5.0, 5.0], [6.0, 5.0], [5.0, 5.0]]), 3.0, None, (10, 12))
    assert set(spot[opacity == 1]) == {1, 2}


def test_the_colors_are_those_of_matplotlib(tmp_path):
    import matplotlib

    for name, colors in COLORMAPS.items():
        places = np.linspace(0.04, 0.92, 256) if name == "Magma" else np.arange(256)
        known = {"Magma": "magma_r", "Gray": "gray_r"}.get(name, name.lower())
        expected = 255 * np.asarray(matplotlib.colormaps[known](places))[:, :3]
        np.testing.assert_allclose(colors, expected, atol=0.5)


def test_a_spot_without_a_prediction_is_a_ring(tmp_path):
    expression_map = make_map()
    expression_map.expression[14] = np.nan
    write_contact_sheet(expression_map, tmp_path / "s.png")
    pixels, pixel = drawn(expression_map, tmp_path / "s.png", 8)
    x, y = expression_map.xy_px[14]
    assert pixels[pixel(0, x, y)].min() > 250
    row, column = pixel(0, x + 30, y)
    assert pixels[row, column - 2 : column + 3].min() < 200


def test_a_spot_outside_has_a_dot_and_its_color_around_it(tmp_path):
    plain = make_map()
    obs = Columns(plain.obs.index, {"outside": np.arange(len(plain.xy_px)) % 5 == 2})
    marked = replace(plain, obs=obs)
    assert "7 outside, unlike the training's tissue (dots)" in _facts(marked, np.zeros(36, bool), dense=False)
    write_contact_sheet(plain, tmp_path / "plain.png")
    write_contact_sheet(marked, tmp_path / "marked.png")
    before, pixel = drawn(plain, tmp_path / "plain.png", 8)
    after, _ = drawn(marked, tmp_path / "marked.png", 8)
    for spot, outside in enumerate(obs["outside"]):
        x, y = plain.xy_px[spot]
        center, edge = pixel(0, x, y), pixel(0, x + 22, y)
        assert after[center].min() > 240 if outside else (after[center] == before[center]).all()
        np.testing.assert_array_equal(after[edge], before[edge])


def test_the_most_structured_or_the_named_genes_are_drawn(tmp_path, monkeypatch):
    shown = []

    def draw(expression_map, genes, kind, dpi, alike):
        shown.append((list(genes), contact_sheet._remark(expression_map, alike)))
        return b"a picture"

    monkeypatch.setattr("mclst.runtime.report.figures.contact_sheet._draw", draw)
    expression_map = make_map(genes=12)
    expression_map.expression[:, 5] = 1.0
    expression_map.expression[:, 1:5] = 2 * expression_map.expression[:, :1]
    moran = morans_i(expression_map.expression, expression_map.xy_px)
    for panels in (2, 12):
        monkeypatch.setattr("mclst.runtime.report.figures.contact_sheet.PANELS", panels)
        write_contact_sheet(expression_map, tmp_path / "sheet.png")
    drawn = write_contact_sheet(expression_map, tmp_path / "sheet.png", genes=["GENE7", "GENE5"])
    few, all_patterns = shown[0][0], shown[1][0]
    assert len(few) == 2 and few == all_patterns[:2] and few[0] == np.nanargmax(moran)
    assert 5 not in all_patterns and len(set(all_patterns) & set(range(5))) == 1 and 3 < len(all_patterns) < 8
    assert [("largest |r|" in text, "left out" in text) for _, text in shown] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    assert shown[2][0] == [7, 5]
    assert drawn[0] == ("GENE7", moran[7]) and drawn[1][0] == "GENE5" and np.isnan(drawn[1][1])


@pytest.mark.parametrize(
    ("n_side", "size", "genes", "mpp"),
    [
        (1, (1000, 800), 1, 0.5),
        (2, (900, 6000), 3, None),
        (14, (9000, 900), 8, 0.25),
        (173, (20_000, 15_000), 8, 0.5),
    ],
)
@pytest.mark.slow
def test_any_shape_of_tissue_and_number_of_spots_gives_a_page(tmp_path, n_side, size, genes, mpp):
    expression_map = make_map(n_side, genes, diameter=None, mpp=mpp, width=size[0], height=size[1])
    write_contact_sheet(expression_map, tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as picture:
        width, height = picture.size
    assert abs(width - 13.33 * DPI) <= 1 and 0.25 < height / width < 2.5
    assert os.listdir(tmp_path) == ["s.png"]


def test_no_panel_leaves_the_page_or_covers_another():
    for genes in range(1, 26):
        for aspect in (1 / 3, 0.7, 1.0, 1.4, 3.0):
            page = GenesLayout(genes, aspect)
            boxes = [page.tissue, *page.boxes]
            assert len(boxes) == genes + 1
            for i, (left, top, width, height) in enumerate(boxes):
                assert left >= page.margin - 1e-9 and left + width <= WIDTH - page.margin + 1e-9
                assert top >= page.head and top + height + page.strip <= page.height - page.foot + 1e-9
                assert width / height == pytest.approx(aspect)
                for other in boxes[:i]:
                    apart = (
                        left >= other[0] + other[2] + page.gap - 1e-9
                        or other[0] >= left + width + page.gap - 1e-9
                    )
                    below = page.caption + page.strip - 1e-9
                    assert apart or top >= other[1] + other[3] + below or other[1] >= top + height + below


@pytest.mark.slow
def test_the_scale_bar_has_its_length(tmp_path):
    expression_map = make_map(mpp=0.5)
    write_contact_sheet(expression_map, tmp_path / "with.png")
    write_contact_sheet(make_map(), tmp_path / "without.png")
    window = _window(expression_map, 60.0)
    page = GenesLayout(8, (window[1] - window[0]) / (window[3] - window[2]))
    left, top, width, height = page.tissue
    row = round((top + height + 0.148) * DPI)
    strips = [
        np.asarray(Image.open(tmp_path / name).convert("L"))[row] < 60 for name in ("with.png", "without.png")
    ]
    columns = slice(round(left * DPI) - 3, round((left + width) * DPI))
    across_um = (window[1] - window[0]) * 0.5
    run = np.flatnonzero(strips[0][columns])
    bar_px = int(np.flatnonzero(np.diff(run, append=10**6) > 1)[0]) + 1
    assert bar_px * across_um / (width * DPI) == pytest.approx(_round_length(across_um / 3), rel=0.02)
    assert not strips[1][columns].any()


def test_round_lengths_and_numbers():
    assert [_round_length(about) for about in (0.3, 1.0, 4.9, 5.0, 77, 1999)] == pytest.approx(
        [0.2, 1, 2, 5, 50, 1000]
    )
    assert (
        _format_limit(0.024, 0.5) == "0.02"
        and _format_limit(-1.25, 2.5) == "−1.2"
        and _format_limit(1234.5, 900) == "1234"
    )
    assert (
        _format_limit(3e-7, 1e-7) == "3.0e−07"
        and _format_limit(4e9, 1e9) == "4.0e+09"
        and _format_limit(1.0, 0.0) == "1.00"
    )


def write_map(path, **uns):
    slide = {
        "images": {"hires": np.full((80, 100, 3), 240, np.uint8)},
        "scalefactors": {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 60.0},
    }
    expression_map = make_map(genes=4)
    data = anndata.AnnData(
        expression_map.expression,
        obsm={"spatial": expression_map.xy_px},
        uns={"spatial": {"s": slide}, **uns},
    )
    data.var_names = list(expression_map.genes)
    data.write_h5ad(path)
    return path


def draw_file(path, out, **options):
    with open_map(path) as expression_map:
        return write_contact_sheet(expression_map, out, **options)


def test_a_published_map_is_drawn_and_bad_files_are_refused(tmp_path):
    path = write_map(tmp_path / "m.h5ad")
    drawn_genes = draw_file(path, tmp_path / "m.png")
    assert drawn_genes and {gene for gene, _ in drawn_genes} <= {"GENE0", "GENE1", "GENE2", "GENE3"}
    content = (tmp_path / "m.png").read_bytes()
    assert Image.open(BytesIO(content)).format == "PNG"
    with pytest.raises(InputError, match="no gene NOPE"):
        draw_file(path, tmp_path / "m.png", genes=["GENE1", "NOPE"])
    with pytest.raises(OutputError, match="cannot be written"):
        draw_file(path, tmp_path / "absent" / "m.png")
    for name, spatial, message in (
        ("bare.h5ad", {"s": {"images": {}, "scalefactors": {}}}, "hires"),
        ("two.h5ad", {"s": {}, "t": {}}, "one tissue image"),
    ):
        with pytest.raises(InputError, match=message):
            draw_file(write_map(tmp_path / name, spatial=spatial), tmp_path / "b.png")
    (tmp_path / "text.h5ad").write_text("not HDF5")
    for absent in ("text.h5ad", "absent.h5ad"):
        with pytest.raises(InputError, match=absent):
            draw_file(tmp_path / absent, tmp_path / "b.png")
    assert (tmp_path / "m.png").read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["bare.h5ad", "m.h5ad", "m.png", "text.h5ad", "two.h5ad"]


def test_spots_outside_the_image_are_refused(tmp_path):
    expression_map = make_map()
    expression_map.xy_px[:] += 100_000
    with pytest.raises(InputError, match="no spot is on its tissue image"):
        write_contact_sheet(expression_map, tmp_path / "s.png")
    assert os.listdir(tmp_path) == []


def test_a_long_name_is_cut_and_no_name_is_read_as_mathematics(tmp_path):
    for page in (RasterPage(8.0), VectorPage(8.0)):
        whole = page.text(0.5, 1.0, "a" * 30, size=10)
        cut = page.text(0.5, 1.0, "a" * 300, max_width=2.0, size=10)
        assert whole > 2.0 >= cut > 1.7
        assert page.text(0.5, 1.0, "$x^2$", size=10) > page.text(0.5, 1.0, "x^2", size=10)


@pytest.mark.parametrize("size", [(1000, 800), (1000, 1000), (500, 1000), (2000, 800)])
def test_the_names_of_the_genes_are_read_on_tissue_of_any_shape(tmp_path, monkeypatch, size):
    texts = []

    class Recorded(RasterPage):
        def text(self, left, baseline, content, max_width=np.inf, **style):
            width = super().text(left, baseline, content, max_width, **style)
            whole = RasterPage.text(self, 0, -9, content, **{**style, "align": "left"})
            right = style.get("align") == "right"
            texts.append((round(baseline, 3), left - width if right else left, width, content, whole))
            return width

    monkeypatch.setattr(contact_sheet, "RasterPage", Recorded)
    genes = [f"HLA-DPA{g}" for g in range(8)]
    r = np.array([0.555, np.nan, *[0.555] * 6])
    var = Columns(np.array(genes, dtype=object), {"expected_r": r, "reliable": r > 0})
    expression_map = replace(make_map(genes=8, width=size[0], height=size[1]), genes=tuple(genes), var=var)
    alike = [0.888] * 8
    contact_sheet._draw(expression_map, range(8), alike=alike)
    assert {content for _, _, _, content, _ in texts} >= set(genes)
    assert sum("r –" in content for *_, content, _ in texts) == 1 and "nan" not in str(texts)
    assert [content for _, _, width, content, whole in texts if width < whole - 1e-6] == []
    for line in {text[0] for text in texts}:
        spans = sorted((left, left + width) for at, left, width, _, _ in texts if at == line)
        assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(spans))
