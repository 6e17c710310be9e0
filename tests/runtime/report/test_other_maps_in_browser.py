"""Pages of calibrated, gridded, tiny and hostile maps in a real browser, from the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from open_pages import NEEDS_BROWSER
from synthetic_maps import DIAMETER, HOSTILE, SCALE, SyntheticMap, synthetic_map

from mclst.runtime.report.figures.style import COLORMAP

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = NEEDS_BROWSER


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
    reliable = [f"GENE{i}" for i in range(0, 12, 2)]
    values = np.stack([calibrated.value(gene) for gene in reliable])
    alike = np.abs(np.corrcoef(values[:, ~np.isnan(values).any(axis=0)]))
    assert chips[0] == "GENE0" and len(set(chips)) == len(chips) and set(chips) <= set(reliable)
    for row, gene in enumerate(reliable):
        others = [alike[row, reliable.index(chip)] for chip in chips if chip != gene]
        assert (max(others) <= 0.9) == (gene in chips), "only what repeats a gene of the list is left out"


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
    page.slide("hide-errors", "40")
    inside = calibrated.nearest[9:]
    alpha = page.colors(list(range(len(calibrated.spots))))[:, 3]
    shown = set(np.flatnonzero(alpha == 255).tolist())
    small = set((np.argsort(inside)[: round(len(inside) * 0.6)] + 9).tolist())
    assert shown == small - {40}
    hidden = page.page.locator("#hide-errors + .value").inner_text()
    assert hidden == f"{len(alpha) - len(small)} of {len(alpha)}"  # with the nine of unknown error


def test_the_first_pattern_is_compared_with_its_measurement_and_read_without_scrolling(
    show: Any, tmp_path: Path
) -> None:
    made = synthetic_map(tmp_path / "made.h5ad", calibrated=True)
    data = anndata.read_h5ad(made.path)
    data.var["expected_r"] = np.linspace(0.4854, 0.6, len(made.genes)).astype(np.float32)
    data.write_h5ad(made.path)
    page = show(made, made.expression)
    fields = page.page.get_by_role("combobox", name="Gene")
    pressed = page.page.locator("#structured button[aria-pressed=true]").all_inner_texts()
    assert [fields.nth(i).input_value() for i in range(2)] == ["GENE0", "GENE0"] and pressed == ["GENE0"]
    assert "expected r 0.49" in page.page.locator("h2").first.inner_text()  # rounded once
    page.page.evaluate("report.selectSpot(20)")
    readout = page.page.locator("[data-part=readout]").first.bounding_box()
    assert readout["y"] + 20 <= page.page.viewport_size["height"]  # its first line, with any fonts
