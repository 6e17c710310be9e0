"""`slide.html` in a real browser, from the disk, with the network off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_pages import NEEDS_BROWSER, OpenPage
from synthetic_maps import SCALE, SyntheticMap, synthetic_map

from mclst.benchmarks.page.browser import wait_until
from mclst.runtime.expression_map.morans_i import morans_i
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.report.figures.style import COLORMAP
from mclst.runtime.report.page import slide_page
from mclst.runtime.report.page.slide_page import write_slide_page

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = NEEDS_BROWSER


def expected(values: np.ndarray, spots: list[int], colors: Any = COLORMAP, limits: Any = None) -> np.ndarray:
    """The colors that matplotlib gives, 0 … 255."""
    low, high = np.nanpercentile(values.astype(np.float64), [1, 99]) if limits is None else limits
    return (
        np.array([colors(float(np.clip((values[spot] - low) / (high - low), 0, 1))) for spot in spots]) * 255
    )


SPOTS = [0, 5, 17, 33, 62, 80]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticMap:
    return synthetic_map(tmp_path_factory.mktemp("made") / "made.h5ad")


def test_the_most_structured_gene_is_shown_first(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    moran = morans_i(made.expression, made.xy_px)
    first = made.genes[int(np.argmax(moran))]
    assert page.page.get_by_role("combobox", name="Gene").first.input_value() == first
    assert page.page.locator("h2").first.inner_text().startswith(first)
    np.testing.assert_allclose(page.colors(SPOTS), expected(made.value(first), SPOTS), atol=3)
    unread = page.colors([40])[0]
    assert unread[3] == 0  # a ring, with the tissue in it
    chips = page.page.locator("#structured button").all_inner_texts()
    assert chips[0] == first and len(set(chips)) == 10


def test_typing_selects_a_gene(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    before = page.colors(SPOTS)
    page.pick("GENE10")
    assert page.page.get_by_role("combobox", name="Gene").first.input_value() == "GENE10"
    after = page.colors(SPOTS)
    np.testing.assert_allclose(after, expected(made.value("GENE10"), SPOTS), atol=3)
    assert np.abs(after - before).max() > 40
    field = page.page.get_by_role("combobox", name="Gene").first
    field.click()
    page.page.keyboard.type("gene1")
    listed = page.page.locator("#genes-0").get_by_role("option")
    options = listed.all_inner_texts()
    assert [text.split()[0] for text in options] == sorted(
        (g for g in made.genes if g.startswith("GENE1")), key=lambda g: -dict(moran_of(made))[g]
    )
    page.page.keyboard.press("ArrowDown")
    assert page.page.locator("#genes-0 [aria-selected=true]").inner_text() == options[1]
    page.page.keyboard.press("Escape")
    assert field.input_value() == "GENE10" and listed.count() == 0
    field.fill("nothing")
    assert "no match" in page.page.get_by_role("listbox").first.inner_text()
    field.press("Escape")
    np.testing.assert_array_equal(page.colors(SPOTS), after)


def moran_of(made: SyntheticMap) -> Any:
    return zip(made.genes, morans_i(made.expression, made.xy_px), strict=True)


def painted(page: OpenPage) -> int:
    return int(
        page.page.evaluate(
            """() => { const { canvas } = report.panes[0];
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return data.filter((byte, i) => i % 4 === 3 && byte > 127).length; }"""
        )
    )


def test_sliders_change_size_opacity_and_hidden_spots(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    usual = painted(page)
    page.slide("spot-size", "0.5")
    assert painted(page) == pytest.approx(usual / 4, rel=0.15)
    page.slide("spot-size", "1")
    assert painted(page) == usual
    page.page.locator("#spot-opacity").focus()
    page.page.keyboard.press("ArrowLeft")
    spots = page.page.locator("[data-part=spots]").first
    assert float(spots.evaluate("(canvas) => getComputedStyle(canvas).opacity")) == pytest.approx(0.85)
    page.slide("tissue-opacity", "0.2")
    tissue = page.page.locator("[data-part=tissue]").first
    assert float(tissue.evaluate("(one) => getComputedStyle(one).opacity")) == pytest.approx(0.2)
    assert page.page.locator("#hide-errors").is_hidden()  # nothing here tells how large an error is


def test_colormaps_and_limits(show: Any, made: SyntheticMap) -> None:
    import matplotlib

    page = show(made)
    values = made.value(page.page.get_by_role("combobox", name="Gene").first.input_value())
    page.page.get_by_label("Colors").select_option("Cividis")
    page.settle()
    cividis = matplotlib.colormaps["cividis"]
    np.testing.assert_allclose(page.colors(SPOTS), expected(values, SPOTS, cividis), atol=3)
    low = page.page.get_by_label("Lower limit of the color scale").first
    high = page.page.get_by_label("Upper limit of the color scale").first
    low.fill("0.5")
    low.press("Enter")
    high.fill("1")
    high.press("Enter")
    page.settle()
    np.testing.assert_allclose(page.colors(SPOTS), expected(values, SPOTS, cividis, (0.5, 1.0)), atol=3)
    low.fill("7")
    low.press("Enter")
    assert low.input_value() == "0.5"  # above the upper end: not taken
    page.page.get_by_role("button", name="Reset").first.click()
    page.settle()
    np.testing.assert_allclose(page.colors(SPOTS), expected(values, SPOTS, cividis), atol=3)


def test_two_genes_side_by_side_move_together(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    assert page.page.get_by_role("region", name="Map").count() == 1
    page.page.get_by_label("Two maps side by side").check()
    page.settle()
    page.pick("GENE3", pane=1)
    page.pick("GENE0", pane=0)
    for pane, gene in ((0, "GENE0"), (1, "GENE3")):
        np.testing.assert_allclose(page.colors(SPOTS, pane), expected(made.value(gene), SPOTS), atol=3)
    views = """() => report.panes.map(({ viewer: { viewport } }) =>
        [viewport.getZoom(true), viewport.getCenter(true).x, viewport.getCenter(true).y])"""
    start = page.page.evaluate(views)
    np.testing.assert_allclose(start[0], start[1], rtol=1e-6)
    page.page.locator("[data-part=surface]").nth(1).hover()
    page.page.mouse.wheel(0, -300)
    wait_until(page.page, f"report.panes[1].viewer.viewport.getZoom() > {start[1][0] * 1.1}")
    page.settle()
    first, second = page.page.evaluate(views)
    assert second[0] > start[1][0] * 1.1
    np.testing.assert_allclose(first, second, rtol=1e-6)
    visible = [spot for spot in SPOTS if page.colors([spot], 1)[0, 3] == 255]
    assert visible
    for pane, gene in ((0, "GENE0"), (1, "GENE3")):
        np.testing.assert_allclose(page.colors(visible, pane), expected(made.value(gene), visible), atol=3)
    page.page.get_by_label("Same color scale for both").check()
    page.settle()
    both = [np.nanpercentile(made.value(gene).astype(float), [1, 99]) for gene in ("GENE0", "GENE3")]
    limits = (min(b[0] for b in both), max(b[1] for b in both))
    for pane, gene in ((0, "GENE0"), (1, "GENE3")):
        np.testing.assert_allclose(
            page.colors(visible, pane), expected(made.value(gene), visible, limits=limits), atol=3
        )


def test_measured_is_shown_next_to_predicted(show: Any, made: SyntheticMap) -> None:
    measured = np.flip(made.expression, axis=0) * 3 + 1
    measured[7] = np.nan
    page = show(made, measured)
    assert page.page.get_by_role("region", name="Map").count() == 2
    page.pick("GENE4", pane=0)
    fields = page.page.get_by_role("combobox", name="Gene")
    assert [fields.nth(i).input_value() for i in range(2)] == ["GENE4", "GENE4"]
    np.testing.assert_allclose(page.colors(SPOTS, 0), expected(made.value("GENE4"), SPOTS), atol=3)
    np.testing.assert_allclose(page.colors(SPOTS, 1), expected(measured[:, 4], SPOTS), atol=3)
    assert page.colors([7], 1)[0, 3] == 0


def test_a_spot_is_read_out_under_the_pointer_and_by_name(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    page.pick("GENE2")
    at = page.page.evaluate(
        """([x, y]) => { const pane = report.panes[0]; const box = pane.canvas.getBoundingClientRect();
        const at = toScreen(pane, x, y);
        return [box.left + at.x, box.top + at.y]; }""",
        (made.xy_px[33] * SCALE).tolist(),
    )
    page.page.mouse.move(*at)
    readout = page.page.locator("[data-part=readout]").first
    words = readout.inner_text().split(" · ")
    assert words[0] == made.spots[33] and words[1] == "GENE2"
    assert float(words[2].split()[-1]) == pytest.approx(made.value("GENE2")[33], abs=2e-4)
    assert words[3].startswith("nearest distance")
    assert float(words[3].split()[-1]) == pytest.approx(made.nearest[33], abs=2e-3)
    assert words[-1] == f"x {made.xy_px[33, 0]:g}, y {made.xy_px[33, 1]:g} px"
    page.page.get_by_label("Spot name").fill("4x4")
    page.page.keyboard.press("Enter")
    page.settle()
    assert readout.inner_text().startswith("4x4 · GENE2 · predicted expression unknown")
    assert "4x4" in page.page.locator("#status").inner_text()
    center = page.page.evaluate(
        "() => { const c = report.panes[0].viewer.viewport.getCenter(); return [c.x, c.y]; }"
    )
    width = page.page.evaluate("report.metadata.image.width")
    np.testing.assert_allclose(center, made.xy_px[40] * SCALE / width, rtol=1e-4)


def test_a_touched_spot_stays_in_the_readout(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    page.page.evaluate(
        """([x, y]) => {
            const pane = report.panes[0];
            const surface = pane.part("surface");
            const box = surface.getBoundingClientRect();
            const at = toScreen(pane, x, y);
            const [clientX, clientY] = [box.left + at.x, box.top + at.y];
            const touch = { pointerType: "touch", bubbles: true, clientX, clientY };
            for (const kind of ["pointerdown", "pointerup", "pointerleave"]) {
                surface.dispatchEvent(new PointerEvent(kind, touch));
            }
        }""",
        (made.xy_px[17] * SCALE).tolist(),
    )
    assert page.page.locator("[data-part=readout]").first.inner_text().startswith(made.spots[17])


def test_the_focused_map_is_outlined(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    surface = page.page.locator("[data-part=surface]").first
    frame = "(one) => getComputedStyle(one).outlineStyle"
    assert surface.evaluate(frame) == "none"
    page.page.get_by_label("Layer").first.focus()
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.getAttribute('role')") == "application"
    assert surface.evaluate(frame) == "solid"


def test_the_nearest_distance_is_a_map_too(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    page.page.get_by_label("Layer").first.select_option("Nearest distance")
    page.settle()
    np.testing.assert_allclose(page.colors(SPOTS), expected(made.nearest, SPOTS), atol=3)
    assert page.page.get_by_role("combobox", name="Gene").first.is_disabled()


@pytest.mark.parametrize("large", [False, True])
def test_decoded_values_are_within_the_stated_error(
    show: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(slide_page, "MAX_FINE_VALUES", 1000)
    made = synthetic_map(tmp_path / "grid.h5ad", grid=True, side=22, genes=30)
    page = show(made)
    layer = page.page.evaluate("report.metadata.layers[0]")
    assert layer["steps"] == (254 if large else 65_534)
    for gene in (0, 7, 29):
        name = page.page.evaluate("(gene) => report.metadata.genes[gene]", gene)
        decoded = page.page.evaluate(
            """async (gene) => { const { array } = await report.cache.values(report.metadata.layers[0], gene);
            return Array.from(array, (value) => (Number.isNaN(value) ? null : value)); }""",
            gene,
        )
        decoded, values = np.array(decoded, float), made.value(name)
        np.testing.assert_array_equal(np.isnan(decoded), np.isnan(values))
        span = float(np.nanmax(values)) - float(np.nanmin(values))
        assert np.nanmax(np.abs(decoded - values)) <= span / layer["steps"] / 2 + 1e-5 * span
    page.pick("GENE4")
    values = made.value("GENE4")
    value, _, error = page.page.evaluate("report.panes[0].values.text(100)").partition(" ± ")
    span = float(np.nanmax(values)) - float(np.nanmin(values))
    if large:
        assert float(error) == pytest.approx(span / 254 / 2, rel=0.06)
    else:
        assert error == ""
    assert abs(float(value) - values[100]) <= (1.1 * float(error) if large else 1e-3)
    np.testing.assert_allclose(page.colors([3, 100, 321]), expected(values, [3, 100, 321]), atol=8)


def test_genes_left_out_are_stated_visibly(show: Any, made: SyntheticMap) -> None:
    page = show(made, max_bytes=0)
    note = page.page.get_by_text("11 of 12 genes are left out to keep this page below 0 MB")
    assert note.is_visible()
    assert page.page.locator("#structured button").count() == 1


def test_the_scale_bar_has_its_length(show: Any, made: SyntheticMap, tmp_path: Path) -> None:
    page = show(made)
    bar = page.page.locator("[data-part=scale-bar]").first
    text, width = bar.inner_text(), bar.bounding_box()["width"]
    um = float(text.split()[0]) * (1000 if text.endswith("mm") else 1)
    px = page.page.evaluate(
        """() => { const { viewport } = report.panes[0].viewer; const { scale } = report.metadata.image;
        const at = (x) => viewport.imageToViewerElementCoordinates(new OpenSeadragon.Point(x * scale, 0)).x;
        return at(1000) - at(0); }"""
    )
    assert width == pytest.approx(um / 0.5 * px / 1000, abs=1.0) and 40 < width <= 121
    without = show(synthetic_map(tmp_path / "bare.h5ad", mpp=None))
    assert not without.page.locator("[data-part=scale-bar]").first.is_visible()


def test_everything_is_reached_by_keyboard_and_has_a_name(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    seen, last = [], None
    for _ in range(60):
        page.page.keyboard.press("Tab")
        focused = page.page.evaluate(
            """() => { const one = document.activeElement;
            const label = one.getAttribute("aria-label") ?? one.labels?.[0]?.textContent ?? one.textContent;
            return [one.tagName, one.id || one.dataset.part || "", label.trim()]; }"""
        )
        if focused == last or focused[0] == "BODY":
            break
        last = focused
        seen.append(focused)
    assert all(label for _, _, label in seen), seen
    reached = {name for _, name, _ in seen}
    assert {"side-by-side", "shared-limits", "colormap", "spot-opacity", "tissue-opacity"} <= reached
    assert {"spot-size", "spot-name", "save-png"} <= reached
    assert {"gene", "layer", "in", "out", "fit", "low", "high", "reset"} <= reached
    surface = page.page.get_by_role("application").first
    surface.focus()
    zoom = "report.panes[0].viewer.viewport.getZoom()"
    before = page.page.evaluate(zoom)
    page.page.keyboard.press("+")
    wait_until(page.page, f"{zoom} > {before}")
    page.page.keyboard.press("r")
    page.page.keyboard.press("f")
    assert page.page.evaluate("report.panes[0].viewer.viewport.getRotation()") == 0
    assert not page.page.evaluate("report.panes[0].viewer.viewport.getFlip()")


def test_print_and_picture(show: Any, made: SyntheticMap, tmp_path: Path) -> None:
    page = show(made)
    with page.page.expect_download() as waiting:
        page.page.get_by_role("button", name="Save as PNG").click()
    waiting.value.save_as(tmp_path / "saved.png")
    from PIL import Image

    saved = np.asarray(Image.open(tmp_path / "saved.png").convert("RGB"))
    assert min(saved.shape[:2]) > 200 and len(np.unique(saved.reshape(-1, 3), axis=0)) > 50
    assert len(np.unique(saved[-18], axis=0)) > 200  # the colors of the scale, below the map
    bar = page.page.locator("[data-part=scale-bar]").first.bounding_box()["width"]
    dark = np.flatnonzero((saved[-34 - 14] == (28, 28, 30)).all(axis=1))
    assert len(dark) == np.ptp(dark) + 1 == pytest.approx(bar, abs=2) and dark[0] == 14
    page.page.emulate_media(media="print")
    assert not page.page.locator("#controls").is_visible()
    assert page.page.locator("[data-part=spots]").first.is_visible()
    assert page.page.pdf().startswith(b"%PDF")


def test_tables_are_sorted_by_a_click(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    page.page.get_by_text("Genes by spatial structure").click()
    first = page.page.locator("table tbody tr td:first-child")
    head = page.page.get_by_role("button", name="Gene", exact=True)
    head.click()
    assert first.all_inner_texts() == sorted(made.genes, reverse=True)
    head.click()
    assert first.all_inner_texts() == sorted(made.genes)
    page.page.get_by_role("button", name="Moran's I", exact=True).click()
    assert first.first.inner_text() == made.genes[int(np.argmax(morans_i(made.expression, made.xy_px)))]


def test_a_browser_that_cannot_decompress_says_so(browser: Any, made: SyntheticMap, tmp_path: Path) -> None:
    with open_map(made.path) as expression_map:
        write_slide_page(expression_map, tmp_path / "slide.html")
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((tmp_path / "slide.html").as_uri())
    wait_until(page, "document.getElementById('maps').innerText.includes('too old to decompress')")
    page.close()
