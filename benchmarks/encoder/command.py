"""`mclst-bench latency`."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.benchmarks.harness.options import (
    ResultFiles,
    parse_numbers,
    parse_settings,
    result_options,
)
from mclst.benchmarks.roofline.datasheets import DEVICES
from mclst.runtime.choices import ON_CPU
from mclst.runtime.cli.bundle_options import bundle_option
from mclst.runtime.click_types import PATH, Finite
from mclst.runtime.console import command, progress, say
from mclst.runtime.errors import MclstError, ResourceError

if TYPE_CHECKING:
    from mclst.benchmarks.contenders.base import U8, ContenderInputs, Encoder
    from mclst.benchmarks.roofline.onnx_flops import GraphWork
    from mclst.runtime.bundle.bundle import Bundle

CHECKED_TILES = 16


@click.command()
@bundle_option
@click.option("--ckpt", type=PATH, help="The bundle's checkpoint; adds torch as a peer.")
@click.option("--slide", type=PATH, help="Take tiles from this slide.  [default: synthetic tiles]")
@click.option("--spots", "spots_path", type=PATH, help="Table of spots of --slide.")
@click.option(
    "--settings",
    default="cpu:fp32",
    callback=parse_settings,
    metavar="PROVIDER:PRECISION,…",
    help="Settings of mclst; the first that runs here is the reference of the ratios.",
)
@click.option(
    "--lanes",
    default="",
    callback=lambda *args: parse_numbers(*args) if args[2] else [],
    metavar="N,…",
    help="Also measure each setting on the CPU with so many tiles side by side.  [default: one per thread]",
)
@click.option(
    "--batch-sizes", "batches", default="1,8,16,32,64,128", callback=parse_numbers, help="Tiles per query."
)
@click.option("--tiles", "tile_count", type=click.IntRange(1), default=256, help="Distinct tiles.")
@click.option(
    "--threads", type=click.IntRange(1), help="Processor threads of each contender.  [default: all cores]"
)
@click.option("--repeats", type=click.IntRange(1), default=5, help="Rounds.")
@click.option(
    "--block", "block_s", type=Finite(0.01, 600), default=2.0, help="Seconds per contender and round."
)
@click.option("--peers/--no-peers", "with_peers", default=True, help="Also run other libraries.")
@click.option(
    "--offline/--no-offline", "with_offline", default=True, help="Also run MLPerf's offline scenario."
)
@click.option(
    "--sustained", "minutes", type=Finite(0, 600), default=0.0, help="Minutes of continuous work at the end."
)
@click.option(
    "--predict", "devices", type=click.Choice(list(DEVICES)), multiple=True,
    help="Speed bound of a device by its data sheet, not a measurement; repeatable.",
)  # fmt: skip
@click.option(
    "--fresh/--no-fresh",
    "with_fresh",
    default=True,
    help="Also measure cold start and memory in fresh processes.",
)
@result_options(plot="Draw latency and throughput against the batch size, and the roofline (PNG).")
@command
def latency(
    bundle_path: Path,
    ckpt: Path | None,
    slide: Path | None,
    spots_path: Path | None,
    settings: list[tuple[str, str]],
    lanes: list[int],
    batches: list[int],
    tile_count: int,
    threads: int | None,
    repeats: int,
    block_s: float,
    with_peers: bool,
    with_offline: bool,
    minutes: float,
    devices: tuple[str, ...],
    with_fresh: bool,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Measure an encoder: latency by batch size, throughput, energy and roofline, beside other libraries.

    Contenders take turns in blocks. No sample is dropped; a percentile appears only where there are enough
    samples.
    """
    if (slide is None) != (spots_path is None):
        raise click.UsageError("--slide and --spots belong together")
    result_files.check()
    from mclst.benchmarks.contenders.encoders import open_peers
    from mclst.benchmarks.contenders.inputs import make_inputs
    from mclst.benchmarks.encoder import measure as measuring
    from mclst.benchmarks.encoder.choice import compare_choice
    from mclst.benchmarks.encoder.table import show_latency
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.harness.power import open_meters
    from mclst.benchmarks.harness.thermal_state import thermal_state, throttling_signs
    from mclst.benchmarks.roofline import peaks as roofline_peaks
    from mclst.benchmarks.schemas.validate import validated
    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.runtime.resources import available_cores

    threads = threads or available_cores()
    bundle = open_bundle(bundle_path)
    document = new_document("mclst-bench-latency/1", threads=threads, bundle=bundle)
    inputs = make_inputs(bundle, ckpt, settings, threads)
    tiles, source = _tiles(bundle, slide, spots_path, tile_count)
    gpu = roofline_peaks.has_cuda()
    peers, unavailable = open_peers(inputs, gpu=gpu) if with_peers else ([], [])
    # Before the rounds: a setting that does not start fails early.
    cold_starts, failed = _cold_starts(inputs, settings, max(batches)) if with_fresh else ([], [])
    unavailable += failed
    # NVML also works without torch.
    nvml = gpu or document["machine"]["gpu"] is not None
    meters, unavailable_meters = open_meters(gpu=nvml)
    state = partial(thermal_state, gpu=nvml)
    before = state()
    results = []
    with progress("rounds", repeats * len(batches), quiet=quiet) as advance:
        for batch in batches:
            ours, failed = _open_settings(inputs, settings, batch, lanes)
            unavailable += [entry for entry in failed if entry not in unavailable]
            result = measuring.measure(
                [*ours, *peers], tiles, batch=batch, rounds=repeats, block_s=block_s,
                warm_s=(min(0.5, block_s), min(5.0, 10 * block_s)), meters=meters,
                on_round=partial(advance, 1),
            )  # fmt: skip
            results.append(result)
            if batch == max(batches):
                ran = {entry["name"] for entry in result["results"]}
                encoders = [encoder for encoder in (*ours, *peers) if encoder.name in ran]
    choice = compare_choice(bundle, results, threads)
    peaks = roofline_peaks.measure_peaks(threads, gpu=gpu)
    works = _add_roofline(results, inputs, peaks)
    best = _best_batches(results)
    offline = measuring.offline(encoders, best, tiles, rounds=max(3, repeats)) if with_offline else None
    first, sustained = encoders[0], None
    if minutes > 0:
        sustained = measuring.sustained(
            first, tiles, batch=best[first.name], seconds=60 * minutes, window_s=min(5.0, 60 * minutes / 8),
            condition=state, meters=meters,
        )  # fmt: skip
        sustained["throttled"] = throttling_signs([window["condition"] for window in sustained["windows"]])
    for meter in meters:
        meter.close()
    checked = tiles[:CHECKED_TILES]
    reference = first.encode(checked) if inputs.network is None else _encode_by_torch(inputs, checked)
    document |= {
        "condition": {"before": before, "after": state()},
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
        "batches": results,
        "choice": choice,
        "offline": offline,
        "sustained": sustained,
        "agreement": {
            "reference": first.name if inputs.network is None else "checkpoint in torch, float32",
            "contenders": measuring.agreement(encoders, checked, reference),
        },
        "versions": {encoder.name: encoder.versions for encoder in encoders},
        "fresh": cold_starts,
        "memory": _peak_memory(encoders, inputs, ckpt, settings, max(batches)) if with_fresh else [],
        "energy": {
            "meters": [{"name": meter.name, "covers": meter.covers} for meter in meters],
            "not_available": unavailable_meters,
        },
        "predictions": _predictions(inputs, devices, batches),
        "absent": unavailable,
    }
    if not quiet:
        show_latency(document)

    def draw() -> bytes:
        from mclst.benchmarks.encoder.chart import latency_png

        return latency_png(document)

    result_files.publish(validated("latency", document), draw)


def _tiles(bundle: Bundle, slide: Path | None, spots: Path | None, count: int) -> tuple[U8, str]:
    """Tiles uint8 [n, S, S, 3], and their source."""
    if slide is not None and spots is not None:
        from mclst.benchmarks.contenders.inputs import real_tiles
        from mclst.sections.tables.spots import read_spots

        return real_tiles(bundle, slide, read_spots(spots), count), f"of {slide.name}"
    from mclst.export.parity.tiles import synthetic_tiles

    return synthetic_tiles(bundle.manifest.tile, count).pixels, "made up"


def _open_settings(
    inputs: ContenderInputs, settings: list[tuple[str, str]], batch: int, lanes: list[int]
) -> tuple[list[Encoder], list[dict[str, str]]]:
    """Open mclst's sessions for this batch; ResourceError where none opens."""
    from mclst.benchmarks.contenders.encoders import open_mclst
    from mclst.benchmarks.harness.measure import PeerUnavailable

    opened, failed = [], []
    for provider, precision in settings:
        fewer = [n for n in lanes if n < min(inputs.threads, batch)] if provider in ON_CPU else []
        try:
            opened += [open_mclst(inputs, provider, precision, batch, n) for n in (None, *fewer)]
        except PeerUnavailable as error:
            failed.append({"name": f"mclst {provider} {precision}", "why": str(error)})
    if not opened:
        raise ResourceError("; ".join(f"{entry['name']}: {entry['why']}" for entry in failed))
    return opened, failed


def _encode_by_torch(inputs: ContenderInputs, tiles: U8) -> Any:
    import torch

    assert inputs.prepare is not None
    with torch.inference_mode():
        return inputs.network.encode_tiles(inputs.prepare(tiles)).numpy()


@cache
def _count_work(path: Path, batch: int) -> GraphWork | None:
    from mclst.benchmarks.roofline.onnx_flops import UncountedNode, count_work

    try:
        return count_work(path, batch)
    except UncountedNode as error:
        say(f"Note: the operations of {path.name} are not counted: {error}")
        return None


def _add_roofline(
    results: list[dict[str, Any]], inputs: ContenderInputs, peaks: dict[str, Any]
) -> list[dict[str, Any]]:
    """Add its roofline to each result; return the work of each graph by precision and batch."""
    from mclst.benchmarks.roofline.peaks import roofline_s

    entries = []
    for of_batch in results:
        batch = of_batch["batch"]
        works = {precision: _count_work(path, batch) for precision, path in inputs.graphs.items()}
        for precision, work in works.items():
            if work is not None:
                entries.append(
                    {"precision": precision, "batch": batch, **vars(work), "least_bytes": work.least_bytes}
                )
        for result in of_batch["results"]:
            # A peer that computes the fp32 graph in bf16 has the fp32 graph's operations.
            work = works.get(result["precision"]) or works["fp32"]
            device = peaks["cuda"] if result["gpu"] else peaks["host"]
            seconds = None
            if work is not None and device is not None:
                seconds = roofline_s(work, device, result["precision"])
            result["roofline_s"] = seconds
            result["of_roofline"] = None if seconds is None else seconds / result["latency_s"]["mean"]
    return entries


def _best_batches(results: list[dict[str, Any]]) -> dict[str, int]:
    best: dict[str, tuple[float, int]] = {}
    for of_batch in results:
        for result in of_batch["results"]:
            rate = (result["tiles_per_s"], of_batch["batch"])
            best[result["name"]] = max(best.get(result["name"], (0.0, 1)), rate)
    return {name: batch for name, (_, batch) in best.items()}


def _cold_starts(
    inputs: ContenderInputs, settings: list[tuple[str, str]], batch: int
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Cold start of each setting, and why a process failed."""
    from mclst.benchmarks.contenders.cold_start import cold_start

    results, failed = [], []
    for provider, precision in settings:
        graph = inputs.graphs[precision]
        try:
            results.append(
                cold_start(graph, provider, precision, tile_px=inputs.tile_px, batch=batch, more=2)
            )
        except MclstError as error:
            failed.append({"name": f"mclst {provider} {precision}, fresh process", "why": str(error)})
    return results, failed


def _peak_memory(
    encoders: list[Encoder],
    inputs: ContenderInputs,
    ckpt: Path | None,
    settings: list[tuple[str, str]],
    batch: int,
) -> list[dict[str, Any]]:
    from mclst.benchmarks.contenders.peak_memory import measure_peak_memory

    # With other lanes it is the same encoder.
    own = {f"mclst {provider} {precision}" for provider, precision in settings}
    return [
        measure_peak_memory(
            encoder.name, "encoder", bundle_path=inputs.bundle, ckpt=ckpt, settings=settings,
            threads=inputs.threads, batch=batch,
        )
        for encoder in encoders
        if encoder.measure is None and (encoder.name in own or not encoder.ours)
    ]  # fmt: skip


def _predictions(
    inputs: ContenderInputs, devices: tuple[str, ...], batches: list[int]
) -> list[dict[str, Any]]:
    from mclst.benchmarks.roofline.datasheets import predict

    predictions = []
    for device in devices:
        for precision in DEVICES[device].operations:
            # Without a graph of that precision: the fp32 graph has the same operations, and at least its
            # bytes.
            path = inputs.graphs.get(precision, inputs.graphs["fp32"])
            for batch in batches:
                work = _count_work(path, batch)
                if work is not None:
                    predictions.append(predict(device, precision, work, 3 * inputs.tile_px**2, batch))
    return predictions
