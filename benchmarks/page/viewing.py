"""`mclst-bench viewing`: how large the page of a large map is, and how fast a browser shows, changes and moves it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.benchmarks.harness.options import PATH, ResultFiles, result_options
from mclst.runtime.console import command, progress, say

if TYPE_CHECKING:
    from mclst.runtime.expression_map.reader import Map

SCRIPT = """async () => {
    const [pane] = report.panes;
    const { viewport } = pane.viewer;
    const timed = async (work) => { const start = performance.now(); await work(); return performance.now() - start; };
    const frame = () => new Promise(requestAnimationFrame);
    const found = { gene_ms: [], paint_ms: [], frame_ms: [] };
    for (let i = 0; i < 20; i++) {
        found.gene_ms.push(await timed(() => pane.set({ gene: (37 * i + 5) % report.told.genes.length })));
        found.paint_ms.push(await timed(() => pane.draw()));
    }
    let last = await frame();
    for (let i = 0; i < 90; i++) {
        viewport.zoomBy(i % 30 < 15 ? 1.05 : 1 / 1.05, null, true);
        viewport.panBy(new OpenSeadragon.Point(i % 2 ? 0.004 : -0.003, 0.001), true);
        const now = await frame();
        found.frame_ms.push(now - last);
        last = now;
    }
    return found;
}"""


def measure(page_path: Path, rounds: int, done: Any) -> dict[str, Any]:
    """Open a page `rounds` times: ms to the first picture, to another gene, to paint the spots, from frame to frame."""
    from mclst.benchmarks.harness.measure import summarize
    from mclst.benchmarks.page.browser import open_browser, wait_for_picture

    taken: dict[str, list[float]] = {"first_picture_ms": [], "gene_ms": [], "paint_ms": [], "frame_ms": []}
    with open_browser() as browser:
        version = browser.browser.version if browser.browser else None
        for _ in range(rounds):
            page = browser.new_page()
            page.goto(page_path.as_uri())
            taken["first_picture_ms"].append(wait_for_picture(page))
            for name, values in page.evaluate(SCRIPT).items():
                taken[name] += values
            page.close()
            done(1)
    return {"browser": version, **{name: summarize(values) for name, values in taken.items()}}


@click.command("viewing", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("map_path", metavar="[MAP]", required=False, type=PATH)
@click.option("--spots", type=click.IntRange(4, 1_000_000), default=30_000, help="Of the made-up maps.")
@click.option("--genes", type=click.IntRange(2, 20_000), default=1_000, help="Of the made-up maps.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="How often the page is opened.")
@click.option("--keep", type=PATH, help="Keep the first page under this name.")
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
    """The page of a large map in a browser without a window or a GPU: size, first picture, change of gene, frames.

    MAP: of mclst-infer; by default two are made up, one as retrieval makes them and one whose noise is each spot's own.
    """
    result_files.check(inputs=(map_path,), others=(keep,))
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.page.synthetic_maps import MADE
    from mclst.runtime.expression_map.reader import open_map
    from mclst.runtime.report.page.slide_page import check_viewer

    check_viewer()
    document = new_document("mclst-bench-viewing/2")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if map_path is not None:
            with open_map(map_path) as found:
                path = Path(folder) / "map.html" if keep is None else keep.absolute()
                results.append({"map": map_path.name, **view(found, path, repeats, quiet=quiet)})
        else:
            for kind, make in MADE.items():
                path = keep.absolute() if keep is not None and not results else Path(folder) / f"{kind}.html"
                made = make(spots, genes)
                results.append({"map": f"made up: {kind}", **view(made, path, repeats, quiet=quiet)})
    result_files.publish(document | {"results": results})


def view(found: Map, path: Path, repeats: int, *, quiet: bool = False) -> dict[str, Any]:
    """Write the page of a map to `path`, open it `repeats` times, and tell what was measured."""
    from mclst.runtime.report.page.slide_page import write_slide_page

    clock = time.perf_counter()
    write_slide_page(found, path)
    seconds = time.perf_counter() - clock
    size = path.stat().st_size
    with progress("openings", repeats, quiet=quiet) as advance:
        taken = measure(path, repeats, advance)
    spots, genes = found.expression.shape
    say(f"{found.title}: {size / 1e6:.1f} MB, written in {seconds:.1f} s", quiet=quiet)
    for name, value in taken.items():
        if isinstance(value, dict):
            median, least, most = value["median"], value["min"], value["max"]
            say(f"  {name.removesuffix('_ms'):<14} {median:8.1f} ms  ({least:.1f} - {most:.1f})", quiet=quiet)
    return {"spots": spots, "genes": genes, "page_bytes": size, "write_s": seconds, **taken}


if __name__ == "__main__":
    viewing()
