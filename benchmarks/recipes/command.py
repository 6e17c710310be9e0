"""`mclst-bench recipes`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, read_document, result_options
from mclst.runtime.console import command, say
from mclst.runtime.errors import InputError

ONE_PER_FAMILY = (
    *("efficientnet_lite0", "ctranspath", "gigapath-flash", "h0-mini", "conch", "uni", "omiclip", "uni2-h"),
    *("virchow2", "h-optimus-0"),
)
"""By size: convolutions, shifted windows, ViT-S, ViT-B, pooler, ViT-L, CoCa, ViT-h, ViT-H, ViT-g."""


TILES = 3
SCHEMA = "mclst-bench-recipes/1"


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
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Also build TensorRT-RTX engines, fp32 and fp16, for this compute capability, such as sm_86; "
    "repeatable.",
)
@click.option("--append", is_flag=True, help="Keep the other encoders' results in the file of --json.")
@result_options()
@command
def recipes(
    names: tuple[str, ...],
    two_blocks: bool,
    slide: Path | None,
    batch_size: int,
    rounds: int,
    targets: tuple[str, ...],
    append: bool,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Export encoders at full size with random weights, a process each: time, peak memory, parity, tiles/s.

    Peak memory is that of the process: of the export, of a run by ONNX Runtime on the CPU, of a build.
    """
    if slide is not None and not two_blocks:
        raise click.UsageError("--slide belongs to --two-blocks")
    if two_blocks and (append or targets):
        raise click.UsageError("--append and --target belong to encoders at full size")
    if append and not (result_files.json_path and result_files.json_path.is_file()):
        raise click.UsageError("--append adds to an existing file; give it with --json")
    result_files = replace(result_files, overwrite=result_files.overwrite or append)
    result_files.check()
    if two_blocks:
        _two_blocks(names, slide, result_files, quiet=quiet)
        return
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.recipes.engines import build_engines, check_targets
    from mclst.benchmarks.recipes.measure import measure_in_subprocess
    from mclst.models.recipes.find import find_recipe

    chosen = [find_recipe(name) for name in names or ONE_PER_FAMILY]
    if targets:
        check_targets(targets)
    document = new_document(SCHEMA)
    document["settings"] = {"batch_size": batch_size, "rounds": rounds, "weights": "random"}
    earlier = _earlier(result_files.json_path, document) if append and result_files.json_path else []
    results: list[dict[str, Any]] = []
    say(
        f"{'encoder':<20} {'M params':>9} {'export s':>9} {'export GiB':>11} {'run GiB':>8} "
        f"{'difference':>11} {'tiles/s':>8}",
        quiet=quiet,
    )
    for recipe in chosen:
        started = new_document(SCHEMA)
        with tempfile.TemporaryDirectory(prefix="mclst-bench-") as folder:
            result = measure_in_subprocess(recipe, batch_size, rounds, Path(folder))
            _show(result, quiet=quiet)
            if targets:
                result["engines"] = build_engines(recipe.title, Path(folder), targets, _show_engine(quiet))
        # Encoders are added hours apart.
        result["measured"] = {"created": started["created"], "verdict": started["verdict"]} | {
            name: started["machine"][name] for name in ("commit", "load_at_start")
        }
        results.append(result)
    document["results"] = [item for item in earlier if item["name"] not in {r["name"] for r in results}]
    document["results"] += results
    result_files.publish(document)


def _earlier(path: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Results in a file of the same machine and settings; InputError if they are others."""
    earlier = read_document(path)
    for name, same in (
        ("schema", earlier.get("schema") == document["schema"]),
        ("settings", earlier.get("settings") == document["settings"]),
        *((f, earlier.get("machine", {}).get(f) == document["machine"][f]) for f in ("cpu", "cores")),
    ):
        if not same:
            raise InputError(f"{path} holds results of another {name}; give --overwrite or another --json")
    results: list[dict[str, Any]] = earlier["results"]
    return results


def _show(result: dict[str, Any], *, quiet: bool) -> None:
    say(
        f"{result['name']:<20} {result['parameters'] / 1e6:>9.1f} {result['export_seconds']:>9.1f} "
        f"{result['export_peak_mib'] / 1024:>11.1f} {result['run_peak_mib'] / 1024:>8.1f} "
        f"{result['relative_difference']:>11.1e} {result['tiles_per_second']:>8.2f}",
        quiet=quiet,
    )


def _show_engine(quiet: bool) -> Any:
    return lambda engine: say(
        f"  {engine['library']} {engine['precision']}: {engine['engine_mib']:,} MiB in "
        f"{engine['seconds']:.0f} s, {engine['peak_mib'] / 1024:.1f} GiB at the peak",
        quiet=quiet,
    )


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
