"""`slide.html` in a real browser, from the disk, with the network off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from synthetic_maps import DIAMETER, HOSTILE, SCALE, SyntheticMap, synthetic_map

from mclst.benchmarks.page.browser import find_chromium, open_browser, wait_for_picture, wait_until
from mclst.runtime.expression_map.morans_i import morans_i
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.report.figures.style import COLORMAP
from mclst.runtime.report.page import slide_page
from mclst.runtime.report.page.openseadragon import VIEWER_PATH
from mclst.runtime.report.page.slide_page import write_slide_page

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(
        find_chromium() is None, reason="no Chromium is installed; `make browser` does, on Debian"
    ),
    pytest.mark.skipif(
        not VIEWER_PATH.is_file(), reason="OpenSeadragon was not fetched when mclst was installed"
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as context:
        yield context


TO_SCREEN = """window.toScreen = ({ viewer }, x, y) =>
    viewer.viewport.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y));
undefined"""
"""Pixels of the tissue image to CSS px of the viewer."""
SETTLED = """report.panes.filter(({ root }) => !root.hidden).every((pane) => {
    const { viewport } = pane.viewer;
    const close = (a, b) => Math.abs(a - b) <= 1e-6 * Math.abs(b) + 1e-9;
    const [now, target] = [viewport.getCenter(true), viewport.getCenter(false)];
    return pane.part("title").textContent === pane.title
        && viewport.getContainerSize().x === pane.part("surface").clientWidth
        && close(viewport.getZoom(true), viewport.getZoom(false))
        && close(now.x, target.x) && close(now.y, target.y);
})"""
"""Every visible pane shows its selection, has its final size and has stopped moving."""


class OpenPage:
    """A page in the browser and the map it shows."""

    def __init__(self, page: Any, made: SyntheticMap) -> None:
        self.page, self.made = page, made
        page.evaluate(TO_SCREEN)

    def settle(self) -> None:
        """Wait until all panes are settled and the next two frames are drawn."""
        frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
        self.page.evaluate(frames)
        wait_until(self.page, SETTLED)
        self.page.evaluate(frames)

    def colors(self, spots: list[int], pane: int = 0) -> np.ndarray:
        """RGBA at the centers of spots, at the positions the viewer reports."""
        pixels = self.page.evaluate(
            """([spots, number]) => {
                const pane = report.panes[number];
                const context = pane.canvas.getContext("2d");
                return spots.map(([x, y]) => {
                    const at = toScreen(pane, x, y);
                    return [...context.getImageData(Math.floor(at.x), Math.floor(at.y), 1, 1).data];
                });
            }""",
            [[(self.made.xy_px[spot] * SCALE).tolist() for spot in spots], pane],
        )
        return np.array(pixels)

    def pick(self, gene: str, pane: int = 0) -> None:
        """Choose a gene by typing its name."""
        field = self.page.get_by_role("combobox", name="Gene").nth(pane)
        field.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(gene.lower())
        self.page.keyboard.press("Enter")
        self.settle()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Write and open a map's page; it must make no request and log no message."""
    complaints: list[str] = []
    pages = []

    def opened(made: SyntheticMap, measured: np.ndarray | None = None, **options: Any) -> OpenPage:
        out = tmp_path / "slide.html"
        with open_map(made.path) as expression_map:
            write_slide_page(expression_map, out, measured=measured, **options)
        page = browser.new_page()
        pages.append(page)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:")) or complaints.append(request.url)
            ),
        )
        page.goto(out.as_uri())
        wait_for_picture(page)
        shown = OpenPage(page, made)
        shown.settle()
        return shown

    yield opened
    for page in pages:
        page.close()
    assert complaints == []


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


def slide_to(page: OpenPage, name: str, value: str) -> None:
    page.page.locator(f"#{name}").fill(value)
    page.settle()


def test_sliders_change_size_opacity_and_hidden_spots(show: Any, made: SyntheticMap) -> None:
    page = show(made)
    usual = painted(page)
    slide_to(page, "spot-size", "0.5")
    assert painted(page) == pytest.approx(usual / 4, rel=0.15)
    slide_to(page, "spot-size", "1")
    assert painted(page) == usual
    page.page.locator("#spot-opacity").focus()
    page.page.keyboard.press("ArrowLeft")
    spots = page.page.locator("[data-part=spots]").first
    assert float(spots.evaluate("(canvas) => getComputedStyle(canvas).opacity")) == pytest.approx(0.85)
    slide_to(page, "tissue-opacity", "0.2")
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


def test_grid_spots_leave_no_gaps(show: Any, tmp_path: Path) -> None:
    made = synthetic_map(tmp_path / "grid.h5ad", grid=True, side=12)
    page = show(made)
    between = page.page.evaluate(
        """(points) => points.map(([x, y]) => {
            const pane = report.panes[0];
            const at = toScreen(pane, x, y);
            const context = pane.canvas.getContext("2d");
            return context.getImageData(Math.floor(at.x), Math.floor(at.y), 1, 1).data[3];
        })""",
        ((made.xy_px[:60] + DIAMETER / 2 - 1) * SCALE).tolist(),
    )
    assert min(between) == 255


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


def test_hostile_names_are_escaped(show: Any, tmp_path: Path) -> None:
    made = synthetic_map(tmp_path / "hostile.h5ad", title=HOSTILE)
    data = anndata.read_h5ad(made.path)
    data.var_names = [HOSTILE, *data.var_names[1:]]
    data.obs_names = [HOSTILE, *data.obs_names[1:]]
    data.write_h5ad(made.path)
    page = show(made)
    assert page.page.locator("h1").inner_text() == HOSTILE.replace("/", "_")
    page.pick(HOSTILE)
    assert page.page.locator("h2").first.inner_text().startswith(HOSTILE)
    assert page.page.locator("img:not(#tissue-image)").count() == 0
    assert json.loads(page.page.evaluate("JSON.stringify(report.names[0])")) == HOSTILE


def test_a_browser_that_cannot_decompress_says_so(browser: Any, made: SyntheticMap, tmp_path: Path) -> None:
    with open_map(made.path) as expression_map:
        write_slide_page(expression_map, tmp_path / "slide.html")
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((tmp_path / "slide.html").as_uri())
    wait_until(page, "document.getElementById('maps').innerText.includes('too old to decompress')")
    page.close()


def test_a_map_of_one_spot_and_one_constant_gene_opens(show: Any, tmp_path: Path) -> None:
    made = synthetic_map(tmp_path / "one.h5ad", side=3, genes=1)
    data = anndata.read_h5ad(made.path)[:1].copy()
    data.X[:] = 0.7
    data.write_h5ad(made.path)
    page = show(made)
    np.testing.assert_allclose(page.colors([0])[0], np.array(COLORMAP(0.0)) * 255, atol=3)
    page.page.get_by_label("Two maps side by side").check()
    page.settle()
    assert page.page.locator("h2").nth(1).inner_text().startswith("GENE0")


def test_a_map_without_any_value_opens(show: Any, tmp_path: Path) -> None:
    made = synthetic_map(tmp_path / "none.h5ad", side=3, genes=2)
    data = anndata.read_h5ad(made.path)
    data.X[:] = np.nan
    data.write_h5ad(made.path)
    page = show(made)
    assert (page.colors(list(range(9)))[:, 3] == 0).all()


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> SyntheticMap:
    return synthetic_map(tmp_path_factory.mktemp("calibrated") / "made.h5ad", calibrated=True)


def test_a_calibrated_page_says_what_to_trust(show: Any, calibrated: SyntheticMap) -> None:
    page = show(calibrated)
    assert "11% of the spots are unlike the 551 spots" in page.page.get_by_role("note").inner_text()
    page.page.get_by_role("combobox", name="Gene").first.click()
    options = page.page.locator("#genes-0 li")
    texts, classes = options.all_inner_texts(), options.evaluate_all("(all) => all.map((o) => o.className)")
    assert [text.split()[0] for text in texts] == [f"GENE{i}" for i in (0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11)]
    assert classes == [""] * 6 + ["dim"] * 6
    assert "expected r 0.60" in texts[0] and "expected r 0.55, not reliable" in texts[6]
    low, high = np.nanmin(calibrated.value("GENE0")), np.nanmax(calibrated.value("GENE0"))
    ends = [float(end) for end in texts[0].split("·")[1].split("to")]
    np.testing.assert_allclose(ends, [low, high], rtol=1e-3)
    chips = page.page.locator("#structured button").all_inner_texts()
    assert chips[0] == "GENE0" and {"GENE4", "GENE6"} < set(chips) < {f"GENE{i}" for i in range(0, 12, 2)}


def test_spots_outside_are_hatched_and_intervals_are_read_at_a_spot(
    show: Any, calibrated: SyntheticMap
) -> None:
    page = show(calibrated)
    page.pick("GENE4")
    same = page.page.evaluate("report.panes[0].colorIndices[0]")
    colors = page.page.evaluate(
        """() => [0, 20].map((spot) => {
          const pane = report.panes[0];
          const view = pane.view();
          const radius = (report.metadata.spot_diameter_px / 2) * view.scale * devicePixelRatio;
          const x = (view.left + view.scale * report.xy[2 * spot]) * devicePixelRatio;
          const y = (view.top + view.scale * report.xy[2 * spot + 1]) * devicePixelRatio;
          const side = Math.max(3, Math.floor(radius));
          const pixels = pane.painter.context.getImageData(x - side / 2, y - side / 2, side, side).data;
          const seen = new Set();
          for (let i = 0; i < pixels.length; i += 4) {
            seen.add(`${pixels[i]} ${pixels[i + 1]} ${pixels[i + 2]}`);
          }
          return seen.size;
        })"""
    )
    assert same is not None and colors[0] > 1 and colors[1] == 1
    readout = page.page.evaluate("[0, 20].map((spot) => report.panes[0].describeSpot(spot))")
    value = calibrated.value("GENE4")[20]
    assert "outside: unlike" in readout[0] and "lower bound unknown" in readout[0]
    assert "outside" not in readout[1]
    assert float(readout[1].split("lower bound ")[1].split()[0]) == pytest.approx(value - 0.5, abs=2e-3)
    assert float(readout[1].split("upper bound ")[1].split()[0]) == pytest.approx(value + 0.5, abs=2e-3)


def test_spots_of_large_expected_error_can_be_hidden(show: Any, calibrated: SyntheticMap) -> None:
    page = show(calibrated)
    slide_to(page, "hide-errors", "40")
    inside = calibrated.nearest[9:]
    alpha = page.colors(list(range(len(calibrated.spots))))[:, 3]
    shown = set(np.flatnonzero(alpha == 255).tolist())
    small = set((np.argsort(inside)[: round(len(inside) * 0.6)] + 9).tolist())
    assert shown == small - {40}
