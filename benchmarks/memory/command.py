"""`mclst-bench memory`: options → dense maps of growing size → table, JSON, picture."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness import machine
from mclst.benchmarks.harness.result_files import ResultFiles, result_options
from mclst.benchmarks.memory.measure import made_up_bundle, measure_apart
from mclst.benchmarks.schemas.common import new_document
from mclst.runtime.console import command, say
from mclst.runtime.report.figures.style import OURS, PALETTE, content, open_frame
from mclst.runtime.slide.open import open_slide

PATH = click.Path(path_type=Path)
SIZES = (1_000, 10_000, 100_000, 1_000_000)
LIMIT_MIB = 2048


@click.command()
@click.argument("slide", type=PATH)
@click.option(
    "--n", "sizes", type=click.IntRange(1), multiple=True, help="Tiles; default 10³, 10⁴, 10⁵ and 10⁶."
)
@click.option(
    "--bundle", type=PATH, help="Default: a made-up encoder of one matrix product, 2,000 spots in its bank."
)
@click.option("--genes", type=click.IntRange(1), default=100, help="Of the made-up bundle.")
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
    """Peak memory of dense maps over SLIDE: a whole run each, with picture and report, in a process of its own."""
    result_files.check((slide, bundle))
    started, where, results = datetime.now(UTC), machine.describe(), []
    with open_slide(slide) as opened:
        about = {"name": slide.name, "width_px": opened.width_px, "height_px": opened.height_px}
    with tempfile.TemporaryDirectory(prefix="mclst-bench-") as made:
        used = made_up_bundle(Path(made) / "bundle", genes) if bundle is None else bundle
        say(f"{'tiles':>12} {'peak MiB':>10} {'before':>8} {'seconds':>9}", quiet=quiet)
        for n in sorted(sizes or SIZES):
            with tempfile.TemporaryDirectory(prefix="run-", dir=made) as folder:
                found = measure_apart(slide, used, n, workers, Path(folder))
            results.append(found)
            line = f"{found['tiles']:>12,} {found['peak_mib']:>10,} {found['open_mib']:>8,} {found['seconds']:>9,.0f}"
            say(line, quiet=quiet)
    content = {
        **new_document("mclst-bench-memory/1", started, where, where["cores"]),
        "slide": about,
        "settings": {"workers": workers, "bundle": "made up" if bundle is None else bundle.name},
        "results": results,
    }
    result_files.publish(lambda: content, lambda: memory_png(results))


def memory_png(results: list[dict[str, Any]]) -> bytes:
    """PNG: peak memory against the number of tiles, and what the process had before the run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    tiles = [found["tiles"] for found in results]
    axes.plot(
        tiles, [found["peak_mib"] for found in results], "o-", color=OURS, label="peak of the whole run"
    )
    axes.plot(
        tiles,
        [found["open_mib"] for found in results],
        "o:",
        color=PALETTE["grey"],
        label="libraries, bundle, slide",
    )
    axes.axhline(LIMIT_MIB, color=PALETTE["vermillion"], linewidth=0.8, linestyle="--")
    axes.annotate("2 GiB", (tiles[0], LIMIT_MIB), va="bottom", fontsize=8, color=PALETTE["vermillion"])
    axes.set_xscale("log")
    axes.set_ylim(0, 1.15 * max(LIMIT_MIB, *(found["peak_mib"] for found in results)))
    axes.set_xlabel("tiles")
    axes.set_ylabel("resident memory, MiB")
    axes.set_title(f"Dense maps of {results[0]['genes']} genes, a process each", fontsize=10)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.85))
    open_frame(axes)
    return content(figure)
