"""Tiles per second of mclst's reader beside others', the same tiles of the same slide, in turns."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness import machine
from mclst.benchmarks.harness.measure import in_turns, spread
from mclst.benchmarks.harness.result_files import ResultFiles, result_options, whole_numbers
from mclst.benchmarks.reading.readers import MAY_DIE, READERS, Corners, survives
from mclst.benchmarks.schemas.common import new_document
from mclst.runtime.console import command, progress, say
from mclst.runtime.errors import SlideError
from mclst.runtime.slide.open import open_slide

PATH = click.Path(path_type=Path)
ORDERS = ("dense", "random")


def places(width: int, height: int, size: int, n: int, order: str, seed: int = 0) -> Corners:
    """Upper left corners int64 [n, 2] (x, y): side by side, row by row, over a square part ("dense"), or anywhere.

    Raises ValueError where the slide is too small for one tile.
    """
    if min(width, height) < size:
        raise ValueError(f"a slide of {width} x {height} px holds no tile of {size} px")
    if order == "random":
        return np.random.default_rng(seed).integers(0, (width - size + 1, height - size + 1), (n, 2))
    columns, rows = width // size, height // size
    across = min(columns, max(1, round(n**0.5)), n)
    number = np.arange(min(n, across * rows))
    return np.stack([number % across, number // across], axis=1) * size


def measure(
    path: Path,
    *,
    size: int,
    n: int,
    order: str,
    workers: int,
    rounds: int,
    peers: bool = True,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Read the tiles of one order by every reader that is installed, `rounds` times in turns.

    Every reader opens the slide afresh in each round. Tells tiles/s by wall clock and by CPU time of all threads, and
    how many of a reader's tiles equal mclst's byte for byte. Raises SlideError where mclst cannot read the slide.
    """
    with open_slide(path) as slide:
        try:
            corners = places(slide.width_px, slide.height_px, size, n, order)
        except ValueError as error:
            raise SlideError(f"{path}: {error}") from error
    chosen = list(READERS) if peers else ["mclst"]
    sums: dict[str, NDArray[np.uint32]] = {}
    skipped = {}
    for name in chosen:
        module, read = READERS[name]
        if importlib.util.find_spec(module) is None:
            skipped[name] = "not installed"
            continue
        if name in MAY_DIE and not survives(name, path, size):
            skipped[name] = "does not survive this slide"
            continue
        found = np.zeros(len(corners), np.uint32)

        def check(row: int, tile: NDArray[np.uint8], found: NDArray[np.uint32] = found) -> None:
            found[row] = zlib.crc32(np.ascontiguousarray(tile).data)

        try:
            read(path, corners, size, workers, check)
        except Exception as error:  # another's reader may fail in any way; that is a result
            if name == "mclst":
                raise
            skipped[name] = f"fails: {' '.join(str(error).split())[:200]}"
            continue
        sums[name] = found
    contenders = {
        name: partial(
            READERS[name][1],
            path,
            corners,
            size,
            workers,
            _as_it_is if name == "mclst" else _into_a_batch(size),
        )
        for name in sums
    }
    taken = in_turns(contenders, rounds, warm_up=0, done=done)
    results = {}
    for name, samples in taken.samples.items():
        rate = {
            "wall": spread([len(corners) / s for s in samples.wall_s]),
            "cpu": spread([len(corners) / max(s, 1e-9) for s in samples.cpu_s]),
        }
        results[name] = {
            "tiles_per_second": rate,
            "equal_to_mclst": int((sums[name] == sums["mclst"]).sum()),
        }
    return {
        "order": order,
        "workers": workers,
        "tiles": len(corners),
        "size_px": size,
        "load": taken.load,
        "readers": results,
        "skipped": skipped,
    }


def _as_it_is(row: int, tile: NDArray[np.uint8]) -> None:
    """mclst hands over tiles that stand in batches already."""


def _into_a_batch(size: int) -> Callable[[int, NDArray[np.uint8]], None]:
    """Copy each tile into a batch, as an encoder takes them."""
    batch = np.empty((64, size, size, 3), np.uint8)

    def keep(row: int, tile: NDArray[np.uint8]) -> None:
        batch[row % 64] = tile

    return keep


@click.command()
@click.argument("slide", type=PATH)
@click.option("--n", type=click.IntRange(1), default=2000, help="Tiles.")
@click.option("--size", type=click.IntRange(1, 4096), default=224, help="Their side, px.")
@click.option("--order", "orders", type=click.Choice(ORDERS), multiple=True, help="Default: both.")
@click.option("--workers", default="1,2", callback=whole_numbers, help="Threads.")
@click.option("--peers/--no-peers", default=True, help="Others' readers beside it.")
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
    """Tiles a second from SLIDE: mclst's reader beside OpenSlide, tifffile, tiffslide, pyvips and cuCIM."""
    result_files.check((slide,))
    started, where, results = datetime.now(UTC), machine.describe(), []
    with open_slide(slide) as opened:
        about = {
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
                found = measure(
                    slide, size=size, n=n, order=order, workers=count, rounds=repeats, peers=peers,
                    done=partial(advance, 1),
                )  # fmt: skip
            results.append(found)
            _show(found, quiet=quiet)
    content = {
        **new_document("mclst-bench-tiles/1", started, where, where["cores"]),
        "slide": about,
        "results": results,
    }
    result_files.publish(lambda: content)


def _show(found: dict[str, Any], *, quiet: bool) -> None:
    say(f"{found['order']}, {found['workers']} workers, {found['tiles']:,} tiles:", quiet=quiet)
    say(f"  {'':<16} {'tiles/s':>9} {'per CPU s':>10}  equal", quiet=quiet)
    for name, result in found["readers"].items():
        rate = {kind: value["median"] for kind, value in result["tiles_per_second"].items()}
        line = f"{name:<16} {rate['wall']:>9,.0f} {rate['cpu']:>10,.0f}  {result['equal_to_mclst']:,}"
        say(f"  {line}", quiet=quiet)
    for name, why in found["skipped"].items():
        say(f"  {name:<16} {why}", quiet=quiet)
