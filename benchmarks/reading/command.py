"""`mclst-bench tiles`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, parse_numbers, result_options
from mclst.runtime.click_types import PATH
from mclst.runtime.console import command, progress

ORDERS = ("dense", "random")


@click.command()
@click.argument("slide", type=PATH)
@click.option("--n", type=click.IntRange(1), default=2000, help="Tiles.")
@click.option("--size", type=click.IntRange(1, 4096), default=224, help="Side of a tile, px.")
@click.option("--order", "orders", type=click.Choice(ORDERS), multiple=True, help="Default: both.")
@click.option("--workers", default="1,2", callback=parse_numbers, help="Threads.")
@click.option("--peers/--no-peers", default=True, help="Also run other readers.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Rounds.")
@result_options()
@command
def tiles(
    slide: Path,
    n: int,
    size: int,
    orders: Sequence[str],
    workers: list[int],
    peers: bool,
    repeats: int,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Measure tiles per second of SLIDE: mclst, OpenSlide, tifffile, tiffslide, pyvips and cuCIM."""
    result_files.check()
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.reading.measure import measure
    from mclst.runtime.slide.open import open_slide

    document = new_document("mclst-bench-tiles/1")
    results: list[dict[str, Any]] = []
    with open_slide(slide) as opened:
        document["slide"] = {
            "name": slide.name,
            "width_px": opened.width_px,
            "height_px": opened.height_px,
            "vendor": opened.vendor,
            "bytes": slide.stat().st_size,
            "segment_px": opened.levels[0].segment_px,
        }
    for order in orders or ORDERS:
        for count in workers:
            with progress(f"{order}, {count} workers", repeats, quiet=quiet) as advance:
                result = measure(
                    slide, size=size, n=n, order=order, workers=count, rounds=repeats, peers=peers,
                    on_round=partial(advance, 1),
                )  # fmt: skip
            results.append(result)
            if not quiet:
                _show(result)
    result_files.publish(document | {"results": results})


def _show(result: dict[str, Any]) -> None:
    from mclst.benchmarks.harness.tables import show_table, show_unavailable

    rows = []
    for name, reader in result["readers"].items():
        rates = (f"{reader['tiles_per_second'][kind]['median']:,.0f}" for kind in ("wall", "cpu"))
        rows.append((name, *rates, f"{reader['equal_to_mclst']:,}"))
    title = f"{result['order']}, {result['workers']} workers, {result['tiles']:,} tiles"
    show_table(title, ("", "tiles/s", "per CPU s", "equal"), rows)
    show_unavailable([{"name": name, "why": why} for name, why in result["skipped"].items()])
