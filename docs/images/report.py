"""Photographs a report for the README: `python docs/images/report.py C4.html [GENE] [OUT.jpg]`.

The page is one of mclst-report with --truth; it is opened in a Chromium without a window.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from mclst.benchmarks.page.browser import open_browser, wait_for_picture

WIDTH, HEIGHT, SCALE = 1480, 880, 1.25
MIDDLE = """() => {
    const [pane] = report.panes;
    const box = pane.canvas.getBoundingClientRect();
    const { left, top, right, bottom } = report.bounds;
    const spot = report.nearest.find((left + right) / 2, (top + bottom) / 2);
    const { left: x, top: y, scale } = pane.place();
    return [box.left + x + scale * report.xy[2 * spot], box.top + y + scale * report.xy[2 * spot + 1]];
}"""
"""Where on the screen the spot in the middle is."""


def photograph(report: Path, gene: str, out: Path) -> None:
    """Open the page, choose a gene by typing, point at a spot, and save what is seen as a JPEG."""
    with open_browser(WIDTH, HEIGHT, scale=SCALE) as browser:
        page = browser.new_page()
        page.goto(report.absolute().as_uri())
        wait_for_picture(page)
        page.get_by_role("combobox", name="Gene").first.fill(gene)
        page.keyboard.press("Enter")
        page.wait_for_timeout(800)
        page.evaluate("document.activeElement.blur()")
        page.mouse.move(*page.evaluate(MIDDLE))
        page.wait_for_timeout(300)
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(out, "JPEG", quality=82, optimize=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    photograph(
        Path(arguments[0]),
        arguments[1] if len(arguments) > 1 else "FASN",
        Path(arguments[2] if len(arguments) > 2 else "report.jpg"),
    )
