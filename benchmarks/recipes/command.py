"""`mclst-bench recipes`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.console import command, say

ONE_PER_FAMILY = (
    *("efficientnet_lite0", "ctranspath", "gigapath-flash", "h0-mini", "conch", "uni", "omiclip", "uni2-h"),
    *("virchow2", "h-optimus-0"),
)
"""By size: convolutions, shifted windows, ViT-S, ViT-B, pooler, ViT-L, CoCa, ViT-h, ViT-H, ViT-g."""


TILES = 3


@click.command()
@click.option("--recipe", "names", multiple=True, help="Encoder; repeatable.  [default: one per family]")
@click.option(
    "--two-blocks",
    is_flag=True,
    help="All encoders at full width with two blocks: whether ONNX Runtime gives what torch gives.",
)
@click.option(
    "--slide",
    type=click.Path(path_type=Path),
    help="Slide whose tissue gives the tiles of --two-blocks.  [default: made-up tiles]",
)
@click.option("--batch-size", type=click.IntRange(1), default=2, help="Tiles encoded at once.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Timed batches.")
@result_options()
@command
def recipes(
    names: tuple[str, ...],
    two_blocks: bool,
    slide: Path | None,
    batch_size: int,
    rounds: int,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Export encoders at full size with random weights, a process each: time, peak memory, parity, tiles/s.

    Peak memory is that of the process: of the export, and of a run by ONNX Runtime on the CPU.
    """
    result_files.check()
    if slide is not None and not two_blocks:
        raise click.UsageError("--slide belongs to --two-blocks")
    if two_blocks:
        _two_blocks(names, slide, result_files, quiet=quiet)
        return
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.recipes.measure import measure_in_subprocess
    from mclst.models.recipes.find import find_recipe

    chosen = [find_recipe(name) for name in names or ONE_PER_FAMILY]
    document = new_document("mclst-bench-recipes/1")
    document["settings"] = {"batch_size": batch_size, "rounds": rounds, "weights": "random"}
    results: list[dict[str, Any]] = []
    say(
        f"{'encoder':<20} {'M params':>9} {'export s':>9} {'export GiB':>11} {'run GiB':>8} "
        f"{'difference':>11} {'tiles/s':>8}",
        quiet=quiet,
    )
    for recipe in chosen:
        with tempfile.TemporaryDirectory(prefix="mclst-bench-") as folder:
            result = measure_in_subprocess(recipe, batch_size, rounds, Path(folder))
        results.append(result)
        say(
            f"{recipe.name:<20} {result['parameters'] / 1e6:>9.1f} {result['export_seconds']:>9.1f} "
            f"{result['export_peak_mib'] / 1024:>11.1f} {result['run_peak_mib'] / 1024:>8.1f} "
            f"{result['relative_difference']:>11.1e} {result['tiles_per_second']:>8.2f}",
            quiet=quiet,
        )
    document["results"] = results
    result_files.publish(document)


def _two_blocks(
    names: tuple[str, ...], slide: Path | None, result_files: ResultFiles, *, quiet: bool
) -> None:
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.recipes.two_blocks import TILE_PX, measure_two_blocks
    from mclst.export.parity.tiles import slide_tiles, synthetic_tiles
    from mclst.models.recipes.find import RECIPES
    from mclst.runtime.bundle.manifest import Tile

    tile = Tile(size_px=TILE_PX)
    tiles = synthetic_tiles(tile, TILES) if slide is None else slide_tiles((slide,), tile, TILES)
    document = new_document("mclst-bench-recipes-two-blocks/1")
    document["settings"] = {"tiles": tiles.source, "count": len(tiles.pixels), "weights": "random"}
    results: list[dict[str, Any]] = []
    say(f"{'encoder':<20} {'difference':>11} {'between tiles':>14}", quiet=quiet)
    for name in names or tuple(RECIPES):
        with tempfile.TemporaryDirectory(prefix="mclst-bench-") as folder:
            result = measure_two_blocks(name, tiles.pixels, Path(folder))
        results.append(result)
        say(
            f"{name:<20} {result['relative_difference']:>11.1e} {result['between_tiles']:>14.1e}", quiet=quiet
        )
    document["results"] = results
    result_files.publish(document)
