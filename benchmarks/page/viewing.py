"""`mclst-bench viewing`: size of a large map's page and its speed in a browser."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.click_types import PATH
from mclst.runtime.console import command, progress, say

if TYPE_CHECKING:
    from mclst.runtime.expression_map.reader import Map

SCRIPT = """async () => {
    const [pane] = report.panes;
    const { viewport } = pane.viewer;
    const timed = async (work) => {
        const start = performance.now();
        await work();
        return performance.now() - start;
    };
    const frame = () => new Promise(requestAnimationFrame);
    const times = { gene_ms: [], paint_ms: [], frame_ms: [] };
    for (let i = 0; i < 20; i++) {
        const gene = (37 * i + 5) % report.metadata.genes.length;
        times.gene_ms.push(await timed(() => pane.show({ gene })));
        times.paint_ms.push(await timed(() => pane.draw()));
    }
    let last = await frame();
    for (let i = 0; i < 90; i++) {
        viewport.zoomBy(i % 30 < 15 ? 1.05 : 1 / 1.05, null, true);
        viewport.panBy(new OpenSeadragon.Point(i % 2 ? 0.004 : -0.003, 0.001), true);
        const now = await frame();
        times.frame_ms.push(now - last);
        last = now;
    }
    return times;
}"""


def measure(page_path: Path, repeats: int, advance: Callable[[int], None]) -> dict[str, Any]:
    """Open a page several times; ms to the first picture, to another gene, to paint, between frames."""
    from mclst.benchmarks.harness.measure import summarize
    from mclst.benchmarks.page.browser import open_browser, wait_for_picture

    times: dict[str, list[float]] = {"first_picture_ms": [], "gene_ms": [], "paint_ms": [], "frame_ms": []}
    with open_browser() as browser:
        version = browser.browser.version if browser.browser else None
        for _ in range(repeats):
            page = browser.new_page()
            page.goto(page_path.as_uri())
            times["first_picture_ms"].append(wait_for_picture(page))
            for name, values in page.evaluate(SCRIPT).items():
                times[name] += values
            page.close()
            advance(1)
    return {"browser": version, **{name: summarize(values) for name, values in times.items()}}


@click.command()
@click.argument("map_path", metavar="[MAP]", required=False, type=PATH)
@click.option(
    "--spots", type=click.IntRange(4, 1_000_000), default=30_000, help="Size of the synthetic maps."
)
@click.option("--genes", type=click.IntRange(2, 20_000), default=1_000, help="Size of the synthetic maps.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Times to open each page.")
@click.option("--keep", type=PATH, help="Keep the first page at this path.")
@result_options()
@command
def viewing(
    map_path: Path | None,
    spots: int,
    genes: int,
    repeats: int,
    keep: Path | None,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Measure the page of a large map in a headless browser without GPU: size, first picture, gene, frames.

    MAP: a map of mclst-infer. Default: two synthetic maps, one retrieved and one noisy.
    """
    result_files.check(others=(keep,))
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.page.synthetic_maps import MAPS
    from mclst.runtime.expression_map.reader import open_map
    from mclst.runtime.report.page.openseadragon import check_viewer

    check_viewer()
    document = new_document("mclst-bench-viewing/2")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if map_path is not None:
            with open_map(map_path) as expression_map:
                path = Path(folder) / "map.html" if keep is None else keep.absolute()
                results.append({"map": map_path.name, **view(expression_map, path, repeats, quiet=quiet)})
        else:
            for kind, make in MAPS.items():
                path = keep.absolute() if keep is not None and not results else Path(folder) / f"{kind}.html"
                synthetic = make(spots, genes)
                results.append({"map": f"synthetic: {kind}", **view(synthetic, path, repeats, quiet=quiet)})
    result_files.publish(document | {"results": results})


def view(expression_map: Map, path: Path, repeats: int, *, quiet: bool = False) -> dict[str, Any]:
    """Write the page of a map to `path` and measure it."""
    from mclst.runtime.report.page.slide_page import write_slide_page

    start = time.perf_counter()
    notes = write_slide_page(expression_map, path)
    seconds = time.perf_counter() - start
    size = path.stat().st_size
    with progress("openings", repeats, quiet=quiet) as advance:
        times = measure(path, repeats, advance)
    spots, genes = expression_map.expression.shape
    say(f"{expression_map.title}: {size / 1e6:.1f} MB, written in {seconds:.1f} s", quiet=quiet)
    for note in notes:
        say(f"  {note}", quiet=quiet)
    for name, value in times.items():
        if isinstance(value, dict):
            median, low, high = value["median"], value["min"], value["max"]
            say(f"  {name.removesuffix('_ms'):<14} {median:8.1f} ms  ({low:.1f} - {high:.1f})", quiet=quiet)
    return {"spots": spots, "genes": genes, "page_bytes": size, "write_s": seconds, **times}


if __name__ == "__main__":
    viewing()
