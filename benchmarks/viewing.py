"""`mclst-bench viewing`: how large the page of a large map is, and how fast a browser shows, changes and moves it."""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from mclst.benchmarks import machine
from mclst.benchmarks.browser import open_browser, wait_for_picture
from mclst.benchmarks.document_parts import begun
from mclst.benchmarks.measure import spread
from mclst.benchmarks.result_files import ResultFiles, result_options
from mclst.runtime.command import command, progress, say
from mclst.runtime.map_file import Map
from mclst.runtime.report.slide_page import check_viewer, write_slide_page

PATH = click.Path(path_type=Path)
PITCH_PX = 100.0
PROGRAMMES = 12
NOISE = 0.05
"""Of a gene's range, what its neighbours do not explain: as of predictions with k = 200 (see packing.py)."""
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


def made_up_map(spots: int, genes: int, seed: int = 0) -> Map:
    """A dense map: each gene a mixture of smooth programmes with noise of 5 % of its range, over pale tissue."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(spots)))
    fields = np.stack(
        [gaussian_filter(rng.normal(size=(side, side)), side / 12) for _ in range(PROGRAMMES)], axis=-1
    )
    fields /= fields.std(axis=(0, 1))
    row, column = np.divmod(np.arange(spots), side)
    expression = fields[row, column] @ rng.gamma(0.5, size=(PROGRAMMES, genes))
    expression += rng.normal(size=expression.shape) * NOISE * np.ptp(expression, axis=0)
    size = int(side * PITCH_PX * 0.1)
    tissue = np.clip(225 + gaussian_filter(rng.normal(size=(size, size, 3)), (2, 2, 0)) * 60, 0, 255)
    return Map(
        path=Path("made-up.h5ad"),
        title=f"{spots:,} spots, {genes:,} genes, made up",
        genes=tuple(f"GENE{gene}" for gene in range(genes)),
        expression=expression.astype(np.float32),
        table=pd.DataFrame(
            {"nearest_distance": rng.uniform(1, 9, spots)},
            index=[f"{x}x{y}" for x, y in zip(column, row, strict=True)],
        ),
        xy_px=np.stack([column + 0.5, row + 0.5], axis=1) * PITCH_PX,
        image=tissue.astype(np.uint8),
        image_scale=0.1,
        spot_diameter_px=PITCH_PX,
        mpp=0.5,
        told={"settings": {"grid_um": PITCH_PX * 0.5}},
    )


def measure(page_path: Path, rounds: int, done: Any) -> dict[str, Any]:
    """Open a page `rounds` times: ms to the first picture, to another gene, to paint the spots, from frame to frame."""
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
    return {"browser": version, **{name: spread(values) for name, values in taken.items()}}


@click.command("viewing", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--spots", type=click.IntRange(4, 1_000_000), default=30_000, help="Of the made-up map.")
@click.option("--genes", type=click.IntRange(2, 20_000), default=1_000, help="Of the made-up map.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="How often the page is opened.")
@click.option("--keep", type=PATH, help="Keep the page under this name.")
@result_options()
@command
def viewing(
    spots: int,
    genes: int,
    repeats: int,
    keep: Path | None,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """The page of a large map in a browser without a window or a GPU: size, first picture, change of gene, frames."""
    result_files.check(others=(keep,))
    check_viewer()
    started, where = datetime.now(UTC), machine.describe()
    with tempfile.TemporaryDirectory() as folder:
        path = (Path(folder) / "page.html") if keep is None else keep.absolute()
        found = made_up_map(spots, genes)
        clock = time.perf_counter()
        write_slide_page(found, path)
        seconds = time.perf_counter() - clock
        size = path.stat().st_size
        with progress("openings", repeats, quiet=quiet) as advance:
            taken = measure(path, repeats, advance)
    say(f"  {spots:,} spots, {genes:,} genes: {size / 1e6:.1f} MB, written in {seconds:.1f} s", quiet=quiet)
    for name, value in taken.items():
        if isinstance(value, dict):
            median, least, most = value["median"], value["min"], value["max"]
            say(f"  {name.removesuffix('_ms'):<14} {median:8.1f} ms  ({least:.1f} - {most:.1f})", quiet=quiet)
    content = {
        **begun("mclst-bench-viewing/1", started, where, where["cores"]),
        "results": [{"spots": spots, "genes": genes, "page_bytes": size, "write_s": seconds, **taken}],
    }
    result_files.publish(lambda: content)


if __name__ == "__main__":
    viewing()
