"""`mclst-bench memory`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.click_types import PATH
from mclst.runtime.console import command, say

SIZES = (1_000, 10_000, 100_000, 1_000_000)


@click.command()
@click.argument("slide", type=PATH)
@click.option(
    "--n", "sizes", type=click.IntRange(1), multiple=True, help="Tiles; default 10³, 10⁴, 10⁵ and 10⁶."
)
@click.option(
    "--bundle", type=PATH, help="Default: a synthetic encoder of one matrix product, 2,000 spots in its bank."
)
@click.option("--genes", type=click.IntRange(1), default=100, help="Genes of the synthetic bundle.")
@click.option("--workers", type=click.IntRange(1, 256), default=2, help="Reading threads.")
@result_options(plot="Draw memory against the number of tiles (PNG).", json="Write everything; - for stdout.")
@command
def memory(
    slide: Path,
    sizes: tuple[int, ...],
    bundle: Path | None,
    genes: int,
    workers: int,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Measure peak memory of dense maps over SLIDE: whole runs with picture and report, a process each."""
    result_files.check()
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.memory.measure import measure_in_subprocess, memory_png, synthetic_bundle
    from mclst.runtime.slide.open import open_slide

    document = new_document("mclst-bench-memory/1")
    results: list[dict[str, Any]] = []
    with open_slide(slide) as opened:
        document["slide"] = {
            "name": slide.name,
            "width_px": opened.width_px,
            "height_px": opened.height_px,
        }
    with tempfile.TemporaryDirectory(prefix="mclst-bench-") as temporary:
        path = synthetic_bundle(Path(temporary) / "bundle", genes) if bundle is None else bundle
        say(f"{'tiles':>12} {'peak MiB':>10} {'before':>8} {'seconds':>9}", quiet=quiet)
        for n in sorted(sizes or SIZES):
            with tempfile.TemporaryDirectory(prefix="run-", dir=temporary) as folder:
                result = measure_in_subprocess(slide, path, n, workers, Path(folder))
            results.append(result)
            say(
                f"{result['tiles']:>12,} {result['peak_mib']:>10,} {result['open_mib']:>8,} "
                f"{result['seconds']:>9,.0f}",
                quiet=quiet,
            )
    document |= {
        "settings": {"workers": workers, "bundle": "made up" if bundle is None else bundle.name},
        "results": results,
    }
    result_files.publish(document, lambda: memory_png(results))
