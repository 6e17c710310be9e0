"""Makes every picture of README and docs/ from real runs, each 1,600 px wide, in the figures' own style.

`python docs/images/make.py` draws the charts from benchmarks/results. The photographs need more:
--bundle BUNDLE --sections HER2ST for c4.jpg and report.jpg, --demo mclst-demo for demo.jpg, and Chromium.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mclst.benchmarks.encoder.chart import latency_png
from mclst.benchmarks.end_to_end.chart import stages_png
from mclst.benchmarks.memory.measure import memory_png
from mclst.benchmarks.page.browser import open_browser, wait_for_picture
from mclst.runtime import RunOptions, open_bundle, open_slide, predict
from mclst.runtime.expression_map.measured import measured_expression
from mclst.runtime.expression_map.reader import open_map
from mclst.runtime.report.files import Files
from mclst.runtime.report.page.slide_page import write_slide_page

IMAGES = Path(__file__).resolve().parent
RESULTS = IMAGES.parents[1] / "benchmarks" / "results"
WIDTH_PX = 1600
CHARTS: dict[str, tuple[str, Callable[[dict[str, Any]], bytes]]] = {
    "end-to-end.png": ("end-to-end-c4-cpu.json", stages_png),
    "latency.png": ("latency-c4-cpu.json", latency_png),
    "memory.png": ("memory-cpu.json", lambda document: memory_png(document["results"])),
}
"""Charts, the measurement of each and what draws it."""
SECTION, GENE = "C4", "FASN"
PAGE_PX = (1480, 860)
NO_PAGE = Files(html=False)
PATH = click.Path(path_type=Path, exists=True)
SELECT_MIDDLE = """() => {
    const { left, top, right, bottom } = report.bounds;
    report.selectSpot(report.nearest.find((left + right) / 2, (top + bottom) / 2));
}"""


@click.command()
@click.option("--bundle", type=PATH, help="Of mclst-fit on sections C2, C3 and C5.")
@click.option("--sections", type=PATH, help="Folder of her2st with section C4, its slide and spots.")
@click.option("--demo", type=PATH, help="Folder that mclst-demo made.")
def main(bundle: Path | None, sections: Path | None, demo: Path | None) -> None:
    """Draw the charts, and the photographs whose runs are given."""
    for name, (measurement, draw) in CHARTS.items():
        save_chart(RESULTS / measurement, draw, IMAGES / name)
    if bundle is not None and sections is not None:
        with tempfile.TemporaryDirectory() as folder:
            photograph_section(bundle, sections, Path(folder))
    if demo is not None:
        save_photograph(Image.open(demo / "comparison.png"), IMAGES / "demo.jpg")


def save_chart(measurement: Path, draw: Callable[[dict[str, Any]], bytes], out: Path) -> None:
    """Draw a measurement as a PNG of few colors, which names the file's SHA-256."""
    content = measurement.read_bytes()
    chart = Image.open(io.BytesIO(draw(json.loads(content)))).convert("RGB").quantize(128)
    about = PngInfo()
    about.add_text("Source", f"{measurement.name} {hashlib.sha256(content).hexdigest()}")
    chart.save(out, optimize=True, pnginfo=about)


def photograph_section(bundle: Path, sections: Path, folder: Path) -> None:
    """Predict the held-out section; save its figure, and its page with measured beside predicted.

    Both name the checkpoint that they show by its SHA-256.
    """
    opened = open_bundle(bundle)
    shows = f"checkpoint {opened.manifest.checkpoint.sha256}"
    out, spots = folder / f"{SECTION}.h5ad", sections / "spots" / f"{SECTION}_selection.tsv"
    with open_slide(sections / "images" / f"{SECTION}.jpg") as slide:
        predict(opened, slide, spots, out, RunOptions(precision="fp32", files=NO_PAGE))
    save_photograph(Image.open(out.with_suffix(".genes.png")), IMAGES / "c4.jpg", shows)
    page = out.with_suffix(".html")
    with open_map(out) as section:
        write_slide_page(section, page, measured=measured_expression(section, sections, SECTION))
    save_photograph(photograph_page(page), IMAGES / "report.jpg", shows)


def photograph_page(report: Path) -> Image.Image:
    """Open a page, choose a gene by typing, select the spot in the middle, and return what is seen."""
    with open_browser(*PAGE_PX, scale=1.25) as browser:
        page = browser.new_page()
        page.goto(report.absolute().as_uri())
        wait_for_picture(page)
        page.get_by_role("combobox", name="Gene").first.fill(GENE)
        page.keyboard.press("Enter")
        page.wait_for_timeout(800)
        page.evaluate("document.activeElement.blur()")
        page.evaluate(SELECT_MIDDLE)
        page.wait_for_timeout(300)
        return Image.open(io.BytesIO(page.screenshot(full_page=True)))


def save_photograph(picture: Image.Image, out: Path, comment: str = "") -> None:
    """Save a picture as a JPEG of the common width, with a comment."""
    height = round(picture.height * WIDTH_PX / picture.width)
    picture = picture.convert("RGB").resize((WIDTH_PX, height), Image.Resampling.LANCZOS)
    picture.save(out, "JPEG", quality=85, optimize=True, comment=comment)


if __name__ == "__main__":
    main()
