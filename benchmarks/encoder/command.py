"""`mclst-bench latency`: options → the encoder by every provider and peer → table, JSON, picture."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.benchmarks.contenders.inputs import parse_settings
from mclst.benchmarks.encoder.table import show_latency
from mclst.benchmarks.harness import machine
from mclst.benchmarks.harness.result_files import ResultFiles, result_options, whole_numbers
from mclst.benchmarks.roofline.datasheets import DEVICES
from mclst.benchmarks.schemas.common import new_document
from mclst.benchmarks.schemas.validate import checked
from mclst.runtime.cli.bundle_options import bundle_option
from mclst.runtime.console import Finite, command, progress, say
from mclst.runtime.errors import ResourceError

if TYPE_CHECKING:
    from mclst.benchmarks.contenders.base import U8, ContenderInputs, Encoder
    from mclst.benchmarks.roofline.onnx_flops import GraphWork
    from mclst.runtime.bundle.bundle import Bundle

PATH = click.Path(path_type=Path)
SCHEMA = "mclst-bench-latency/1"
CHECKED_TILES = 16


@click.command(context_settings={"show_default": True})
@bundle_option
@click.option("--ckpt", type=PATH, help="The checkpoint the bundle is of; with it torch runs beside mclst.")
@click.option("--slide", type=PATH, help="Take real tiles from this slide.  [default: made-up tiles]")
@click.option("--spots", "spots_path", type=PATH, help="Table of spots of --slide.")
@click.option(
    "--settings",
    default="cpu:fp32",
    callback=parse_settings,
    metavar="PROVIDER:PRECISION,…",
    help="Of mclst; the first that runs here is what others are compared with.",
)
@click.option(
    "--batch-sizes", "batches", default="1,8,16,32,64,128", callback=whole_numbers, help="Tiles per query."
)
@click.option("--tiles", "most", type=click.IntRange(1), default=256, help="Different tiles.")
@click.option(
    "--threads", type=click.IntRange(1), help="Of the processor, for everyone.  [default: all cores]"
)
@click.option("--repeats", type=click.IntRange(1), default=5, help="Rounds.")
@click.option(
    "--block", "block_s", type=Finite(0.01, 600), default=2.0, help="Seconds of each contender in each round."
)
@click.option("--peers/--no-peers", default=True, help="Others' ways beside it.")
@click.option("--offline/--no-offline", "with_offline", default=True, help="MLPerf's offline scenario too.")
@click.option(
    "--sustained", "minutes", type=Finite(0, 600), default=0.0, help="Minutes without a pause, at the end."
)
@click.option(
    "--predict", "wanted", type=click.Choice(list(DEVICES)), multiple=True,
    help="Bound for a device by its data sheet, not a measurement; repeatable.",
)  # fmt: skip
@click.option(
    "--fresh/--no-fresh", default=True, help="Cold start, and everyone's memory, in fresh processes."
)
@result_options(plot="Draw latency and throughput against the batch, and the roofline (PNG).")
@command
def latency(
    bundle_path: Path,
    ckpt: Path | None,
    slide: Path | None,
    spots_path: Path | None,
    settings: list[tuple[str, str]],
    batches: list[int],
    most: int,
    threads: int | None,
    repeats: int,
    block_s: float,
    peers: bool,
    with_offline: bool,
    minutes: float,
    wanted: tuple[str, ...],
    fresh: bool,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Tiles to embeddings: latency by batch, throughput, energy and distance to the machine's limit, beside every peer.

    Contenders take turns in blocks; nothing is left out of the samples, and a percentile is told only where there are
    enough of them.
    """
    if (slide is None) != (spots_path is None):
        raise click.UsageError("--slide and --spots belong together")
    result_files.check((bundle_path, ckpt, slide, spots_path))
    from mclst.benchmarks.contenders.inputs import make_inputs
    from mclst.benchmarks.encoder import measure as measuring
    from mclst.benchmarks.harness.power import open_meters
    from mclst.benchmarks.harness.thermal_state import condition, throttled
    from mclst.benchmarks.roofline import peaks as peaks_of
    from mclst.runtime.bundle.bundle import open_bundle

    started, where = datetime.now(UTC), machine.describe()
    threads = threads or machine.available_cores()
    bundle = open_bundle(bundle_path)
    given = make_inputs(bundle, ckpt, settings, threads)
    tiles, source = _tiles(bundle, slide, spots_path, most)
    gpu = peaks_of.has_cuda()
    others, absent = _peers(given, peers, gpu)
    # Before the rounds: what does not start says so early, and costs no measurement.
    cold, missing = _fresh(given, settings, max(batches)) if fresh else ([], [])
    absent += missing
    # NVML answers where torch is not installed too.
    board = gpu or where["gpu"] is not None
    meters, unmetered = open_meters(gpu=board)
    before = condition(gpu=board)
    measured = []
    lanes: dict[int, list[Encoder]] = {}
    with progress("rounds", repeats * len(batches), quiet=quiet) as advance:
        for batch in batches:
            mine, missing = _ours(given, settings, batch)
            absent += [entry for entry in missing if entry not in absent]
            found = measuring.measure(
                [*mine, *others], tiles, batch=batch, rounds=repeats, block_s=block_s,
                warm_s=(min(0.5, block_s), min(5.0, 10 * block_s)), meters=meters, done=partial(advance, 1),
            )  # fmt: skip
            measured.append(found)
            ran = {result["name"] for result in found["results"]}
            lanes[batch] = [encoder for encoder in (*mine, *others) if encoder.name in ran]
    peaks = peaks_of.measure_peaks(threads, gpu=gpu)
    works = _hold_against_roofline(measured, given, peaks)
    best = _best_batches(measured)
    widest = lanes[max(batches)]
    offline = measuring.offline(widest, best, tiles, rounds=max(3, repeats)) if with_offline else None
    sustained = None
    if minutes > 0:
        first = widest[0]
        sustained = measuring.sustained(
            first, tiles, batch=best[first.name], seconds=60 * minutes, window_s=min(5.0, 60 * minutes / 8),
            condition=partial(condition, gpu=board), meters=meters,
        )  # fmt: skip
        sustained["throttled"] = throttled([window["condition"] for window in sustained["windows"]])
    for meter in meters:
        meter.close()
    reference = (
        widest[0].encode(tiles[:CHECKED_TILES]) if given.network is None else _by_network(given, tiles)
    )
    content = {
        **new_document(SCHEMA, started, where, threads, bundle),
        "condition": {"before": before, "after": condition(gpu=board)},
        "settings": {
            "rounds": repeats,
            "block_s": block_s,
            "threads": threads,
            "interleaved": True,
            "outliers_removed": 0,
            "percentiles": "linear; intervals by order statistics",
            "tiles": source,
            "different_tiles": len(tiles),
        },
        "peaks": peaks,
        "work": works,
        "batches": measured,
        "offline": offline,
        "sustained": sustained,
        "agreement": {
            "reference": f"{widest[0].name}" if given.network is None else "checkpoint in torch, float32",
            "contenders": measuring.agreement(widest, tiles[:CHECKED_TILES], reference),
        },
        "versions": {encoder.name: encoder.versions for encoder in widest},
        "fresh": cold,
        "memory": _memory(widest, given, ckpt, settings, max(batches)) if fresh else [],
        "energy": {
            "meters": [{"name": meter.name, "covers": meter.covers} for meter in meters],
            "not_available": unmetered,
        },
        "predictions": _predictions(given, wanted, batches, bundle),
        "absent": absent,
    }
    if not quiet:
        show_latency(content)
    result_files.publish(lambda: checked("latency", content), lambda: _picture(content))


def _picture(content: dict[str, Any]) -> bytes:
    from mclst.benchmarks.encoder.chart import latency_png

    return latency_png(content)


def _tiles(bundle: Bundle, slide: Path | None, spots: Path | None, most: int) -> tuple[U8, str]:
    """Tiles uint8 [n, S, S, 3], and where they are from."""
    if slide is not None and spots is not None:
        from mclst.benchmarks.contenders.inputs import real_tiles
        from mclst.sections.tables.spots import read_spots

        return real_tiles(bundle, slide, read_spots(spots), most), f"of {slide.name}"
    from mclst.export.parity.tiles import made_up_tiles

    return made_up_tiles(bundle.manifest.tile, most).pixels, "made up"


def _peers(given: ContenderInputs, wanted: bool, gpu: bool) -> tuple[list[Encoder], list[dict[str, str]]]:
    from mclst.benchmarks.contenders.encoders import peers

    return peers(given, gpu=gpu) if wanted else ([], [])


def _ours(
    given: ContenderInputs, settings: list[tuple[str, str]], batch: int
) -> tuple[list[Encoder], list[dict[str, str]]]:
    """mclst's sessions, opened for this batch, and why the others do not run; ResourceError where none does."""
    from mclst.benchmarks.contenders.encoders import ours
    from mclst.benchmarks.harness.errors import PeerUnavailable

    opened, missing = [], []
    for provider, precision in settings:
        try:
            opened.append(ours(given, provider, precision, batch))
        except PeerUnavailable as why:
            missing.append({"name": f"mclst {provider} {precision}", "why": str(why)})
    if not opened:
        raise ResourceError("; ".join(f"{entry['name']}: {entry['why']}" for entry in missing))
    return opened, missing


def _by_network(given: ContenderInputs, tiles: U8) -> Any:
    import torch

    assert given.prepare is not None
    with torch.inference_mode():
        return given.network.encode_tiles(given.prepare(tiles[:CHECKED_TILES])).numpy()


def _counted(path: Path, batch: int) -> GraphWork | None:
    from mclst.benchmarks.roofline.onnx_flops import Uncounted, count

    try:
        return count(path, batch)
    except Uncounted as why:
        say(f"Note: the operations of {path.name} are not counted: {why}")
        return None


def _hold_against_roofline(
    measured: list[dict[str, Any]], given: ContenderInputs, peaks: dict[str, Any]
) -> list[dict[str, Any]]:
    """To each result the share of its roofline; returns what was counted, by precision and batch."""
    from mclst.benchmarks.roofline.peaks import roofline

    told = []
    for of_batch in measured:
        batch = of_batch["batch"]
        works = {precision: _counted(path, batch) for precision, path in given.graphs.items()}
        for precision, work in works.items():
            if work is not None:
                told.append(
                    {"precision": precision, "batch": batch, **vars(work), "least_bytes": work.least_bytes}
                )
        for result in of_batch["results"]:
            # A peer that computes an fp32 graph in bf16 has the same operations.
            work = works.get(result["precision"]) or works["fp32"]
            side = peaks["cuda"] if result["gpu"] else peaks["host"]
            least = None if work is None or side is None else roofline(work, side, result["precision"])
            result["roofline_s"] = least
            result["of_roofline"] = None if least is None else least / result["latency_s"]["mean"]
    return told


def _best_batches(measured: list[dict[str, Any]]) -> dict[str, int]:
    best: dict[str, tuple[float, int]] = {}
    for of_batch in measured:
        for result in of_batch["results"]:
            rate = (result["tiles_per_s"], of_batch["batch"])
            best[result["name"]] = max(best.get(result["name"], (0.0, 1)), rate)
    return {name: batch for name, (_, batch) in best.items()}


def _fresh(
    given: ContenderInputs, settings: list[tuple[str, str]], batch: int
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Cold starts, and which process did not get to its first tile, in its own words."""
    from mclst.benchmarks.contenders.cold_start import cold_start

    found, absent = [], []
    for provider, precision in settings:
        try:
            found.append(
                cold_start(
                    given.graphs[precision], provider, precision, tile_px=given.tile_px, batch=batch, more=2
                )
            )
        except ResourceError as error:
            absent.append({"name": f"mclst {provider} {precision}, fresh process", "why": str(error)})
    return found, absent


def _memory(
    encoders: list[Encoder],
    given: ContenderInputs,
    ckpt: Path | None,
    settings: list[tuple[str, str]],
    batch: int,
) -> list[dict[str, Any]]:
    from mclst.benchmarks.contenders.peak_memory import measure_alone

    return [
        measure_alone(
            encoder.name, "encoder", bundle=given.bundle, ckpt=ckpt, settings=settings, threads=given.threads, batch=batch
        )
        for encoder in encoders
        if encoder.times is None
    ]  # fmt: skip


def _predictions(
    given: ContenderInputs, wanted: tuple[str, ...], batches: list[int], bundle: Bundle
) -> list[dict[str, Any]]:
    from mclst.benchmarks.roofline.datasheets import predict

    side = bundle.manifest.tile.size_px
    found = []
    for device in wanted:
        for precision in DEVICES[device].operations:
            # A bundle without a graph of that precision has the fp32 graph's operations, and its bytes at the most.
            path = given.graphs.get(precision, given.graphs["fp32"])
            for batch in batches:
                work = _counted(path, batch)
                if work is not None:
                    found.append(predict(device, precision, work, 3 * side * side, batch))
    return found
