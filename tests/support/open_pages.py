"""`slide.html` opened in a real browser, for tests to read and to operate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_maps import SCALE, SyntheticMap

from mclst.benchmarks.page.browser import find_chromium, wait_for_picture, wait_until
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.report.page.openseadragon import VIEWER_PATH
from mclst.runtime.report.page.slide_page import write_slide_page

NEEDS_BROWSER = [
    pytest.mark.skipif(
        find_chromium() is None, reason="no Chromium is installed; `make browser` does, on Debian"
    ),
    pytest.mark.skipif(
        not VIEWER_PATH.is_file(), reason="OpenSeadragon was not fetched when mclst was installed"
    ),
]

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

    def slide(self, name: str, value: str) -> None:
        """Move a slider."""
        self.page.locator(f"#{name}").fill(value)
        self.settle()


@contextmanager
def opened_pages(browser: Any, folder: Path) -> Iterator[Callable[..., OpenPage]]:
    """Write and open pages of maps, which must make no request and log no message."""
    complaints: list[str] = []
    pages = []

    def note_request(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            complaints.append(request.url)

    def opened(made: SyntheticMap, measured: np.ndarray | None = None, **options: Any) -> OpenPage:
        out = folder / "slide.html"
        with open_map(made.path) as expression_map:
            write_slide_page(expression_map, out, measured=measured, **options)
        page = browser.new_page()
        pages.append(page)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", note_request)
        page.goto(out.as_uri())
        wait_for_picture(page)
        shown = OpenPage(page, made)
        shown.settle()
        return shown

    yield opened
    for page in pages:
        page.close()
    assert complaints == []
