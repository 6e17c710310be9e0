"""`mclst-bench systems`: the six systems side by side, from tiles to expression, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness import machine
from mclst.benchmarks.harness.measure import Samples, in_turns, spread
from mclst.benchmarks.harness.result_files import ResultFiles, result_options
from mclst.benchmarks.schemas.common import new_document
from mclst.runtime.console import command, progress, say
from mclst.runtime.errors import ResourceError
from mclst.runtime.inference.providers import PROVIDERS

if TYPE_CHECKING:
    from mclst.benchmarks.systems.exported_systems import ExportedSystem

PATH = click.Path(path_type=Path)
NAMES = ("mclstexp", "bleep", "stnet", "histogene", "hist2st", "thitogene")


def measure(
    deployed: Mapping[str, ExportedSystem],
    *,
    spots: int,
    batch: int,
    rounds: int,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Time every system over `spots` random tiles: its part per tile, and the rest, by turns.

    Gives load and, by system, tiles/s by wall clock: of the tiles' part alone and of both together.
    """
    features: dict[str, NDArray[np.float32]] = {}
    contenders: dict[str, Callable[[], object]] = {}
    for name, system in deployed.items():
        shape = (spots, system.tile_px, system.tile_px, 3)
        tiles = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        features[name] = system.encode(tiles, batch)
        contenders[f"{name} tiles"] = partial(system.encode, tiles, batch)
        contenders[f"{name} rest"] = partial(system.predict_expression, features[name])
    taken = in_turns(contenders, rounds, warm_up=0, done=done)
    results = {
        name: _result(system, spots, *(taken.samples[f"{name} {part}"] for part in ("tiles", "rest")))
        for name, system in deployed.items()
    }
    return {"load": taken.load, "systems": results}


def _result(system: ExportedSystem, spots: int, tiles: Samples, rest: Samples) -> dict[str, Any]:
    both = [a + b for a, b in zip(tiles.wall_s, rest.wall_s, strict=True)]
    return {
        "kind": system.system.kind,
        "tile_px": system.tile_px,
        "parameters": system.parameters,
        "provider": system.session.provider,
        "after": system.after,
        "tiles_per_second": {
            "tiles": spread([spots / max(s, 1e-9) for s in tiles.wall_s]),
            "all": spread([spots / max(s, 1e-9) for s in both]),
        },
        "rest_seconds": spread(rest.wall_s),
    }


@click.command(context_settings={"show_default": True})
@click.option("--system", "chosen", type=click.Choice(NAMES), multiple=True, help="Only this; repeatable.")
@click.option("--spots", type=click.IntRange(1), default=184, help="Tiles, as of one section.")
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Tiles at a time.")
@click.option("--provider", type=click.Choice(PROVIDERS), default="auto", help="Of the graphs.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Rounds.")
@click.option(
    "--memory", type=click.IntRange(1), help="Also the peak memory over a whole slide of so many spots."
)
@result_options()
@command
def systems(
    chosen: tuple[str, ...],
    spots: int,
    batch_size: int,
    provider: str,
    repeats: int,
    memory: int | None,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """The six systems in their published sizes, with random weights: tiles a second from pixels to expression.

    The tiles are in memory; reading them is what `mclst-bench tiles` measures.
    """
    result_files.check()
    try:
        from mclst.benchmarks.systems.exported_systems import PUBLISHED, ExportedSystem
        from mclst.benchmarks.systems.slide_memory import measure_apart
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[export,cpu]") from error
    started, where, names = datetime.now(UTC), machine.describe(), chosen or NAMES
    with tempfile.TemporaryDirectory() as folder:
        deployed = {}
        with progress("exporting", len(names), quiet=quiet) as advance:
            for name in names:
                deployed[name] = ExportedSystem(
                    name, PUBLISHED[name], Path(folder) / name, provider, batch_size
                )
                advance(1)
        with progress("rounds", repeats, quiet=quiet) as advance:
            found = measure(deployed, spots=spots, batch=batch_size, rounds=repeats, done=partial(advance, 1))
        slides = {name: d for name, d in deployed.items() if d.sequence_path is not None}
        for name, system in slides.items() if memory else ():
            assert system.sequence_path is not None and memory is not None
            say(f"{name} over {memory:,} spots", quiet=quiet)
            found["systems"][name]["memory"] = measure_apart(system.sequence_path, system.settings, memory)
    _show(found, quiet=quiet)
    content = {
        **new_document("mclst-bench-systems/1", started, where, where["cores"]),
        "settings": {"spots": spots, "batch_size": batch_size, "rounds": repeats, "weights": "random"},
        **found,
    }
    result_files.publish(lambda: content)


def _show(found: dict[str, Any], *, quiet: bool) -> None:
    say(f"  {'':<10} {'tiles/s':>8} {'to expression':>14}  {'provider':<9} then", quiet=quiet)
    for name, result in found["systems"].items():
        rate = {part: value["median"] for part, value in result["tiles_per_second"].items()}
        then = f"{result['after']}, {result['rest_seconds']['median']:.2f} s" if result["after"] else "-"
        line = f"{name:<10} {rate['tiles']:>8,.1f} {rate['all']:>14,.1f}  {result['provider']:<9} {then}"
        say(f"  {line}", quiet=quiet)
    for name, result in found["systems"].items():
        if "memory" in result:
            of = result["memory"]
            say(
                f"  {name}: {of['peak_mib']:,} MiB at the peak over {of['spots']:,} spots "
                f"({of['open_mib']:,} before the run), {of['seconds']:,} s",
                quiet=quiet,
            )
