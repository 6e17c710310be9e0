"""`mclst-bench scale`."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.click_types import PATH
from mclst.runtime.console import command, say, table
from mclst.runtime.errors import OutputError

PX_PER_CELL = 1600
"""A cell per 100 µm² at 0.25 µm/px, as in dense tissue."""
TILE_PX = 64


@click.command()
@click.option("--cells", type=click.IntRange(0), default=1_000_000, help="GeoJSON cells; 0 for none.")
@click.option("--bins", type=click.IntRange(0), default=11_222_500, help="2 µm bins to pool; 0 for none.")
@click.option("--genes", type=click.IntRange(1), default=100, help="Genes of the map.")
@click.option("--workers", type=click.IntRange(1, 256), default=2, help="Reading threads.")
@click.option("--folder", type=PATH, help="Where gigabytes of made-up inputs go.  [default: a temporary one]")
@result_options(json="Write everything; - for stdout.")
@command
def scale(
    cells: int,
    bins: int,
    genes: int,
    workers: int,
    folder: Path | None,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Measure a million cells as spots, and 2 µm bins pooled to 16 µm: seconds and peak memory.

    Slide, cells and bins are made up, the encoder is one matrix product: what grows with their number does
    not depend on what they show. If Chromium is installed, the page of the map is opened in it.
    """
    result_files.check()
    if folder is not None and not os.path.isdir(folder):
        raise OutputError(f"{folder} is not a folder; make it first or choose another --folder")
    from mclst.benchmarks.harness.machine import new_document

    document = new_document("mclst-bench-scale/1")
    document["settings"] = {"workers": workers, "tile_px": TILE_PX, "genes": genes}
    with tempfile.TemporaryDirectory(prefix="mclst-bench-", dir=folder) as temporary:
        if cells:
            document["cells"] = _measure_cells(Path(temporary), cells, genes, workers)
            table(document["cells"].items(), quiet=quiet)
        if bins:
            document["bins"] = _measure_bins(Path(temporary), bins)
            say("", quiet=quiet)
            table(document["bins"].items(), quiet=quiet)
    result_files.publish(document)


def _measure_cells(folder: Path, count: int, genes: int, workers: int) -> dict[str, Any]:
    from mclst.benchmarks.memory.measure import synthetic_bundle
    from mclst.benchmarks.scale.inputs import write_cells, write_slide
    from mclst.benchmarks.scale.measure import measure_cells

    side = max(2048, math.isqrt(count * PX_PER_CELL))
    slide = write_slide(folder / "slide.tif", side)
    cells = write_cells(folder / "cells.geojson", count, side)
    bundle = synthetic_bundle(folder / "bundle", genes, tile_px=TILE_PX)
    result = measure_cells(slide, bundle, cells, workers, folder / "map.h5ad")
    sizes = {
        "slide_px": side,
        "slide_mib": slide.stat().st_size >> 20,
        "cells_mib": cells.stat().st_size >> 20,
    }
    return {**result, **sizes, "page_opens_ms": _open_page(folder / "map.html")}


def _open_page(page: Path) -> float | None:
    """Ms to the first picture of a page in Chromium; None where none is installed."""
    from mclst.benchmarks.page.browser import open_browser, wait_for_picture
    from mclst.runtime.errors import ResourceError

    try:
        with open_browser() as browser:
            tab = browser.new_page()
            tab.goto(page.absolute().as_uri())
            return round(wait_for_picture(tab))
    except ResourceError:
        return None


def _measure_bins(folder: Path, count: int) -> dict[str, Any]:
    from mclst.benchmarks.scale.inputs import write_bins
    from mclst.benchmarks.scale.measure import measure_bins

    side = max(8, math.isqrt(count))
    outs = write_bins(folder / "hd" / "outs", side)
    size = sum(path.stat().st_size for path in outs.rglob("*") if path.is_file())
    return {"bins": side * side, "files_mib": size >> 20, **measure_bins(outs, 16)}
