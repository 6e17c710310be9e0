"""`mclst-bench end-to-end`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.benchmarks.harness.options import ResultFiles, parse_settings, result_options
from mclst.runtime.cli.bundle_options import bundle_option
from mclst.runtime.click_types import PATH
from mclst.runtime.console import command, progress, say

if TYPE_CHECKING:
    from mclst.runtime.bundle.bundle import Bundle


@click.command(name="end-to-end")
@click.argument("slide", type=PATH)
@click.option("--spots", "spots_path", type=PATH, required=True, help="Table of spots, as for mclst-infer.")
@bundle_option
@click.option(
    "--ckpt",
    type=PATH,
    help="The bundle's checkpoint; adds the published notebook as a peer.",
)
@click.option("--truth", type=PATH, help="Measured sections to score each map against.")
@click.option("--section", help="The slide's section in --truth.  [default: by the slide's name]")
@click.option(
    "--settings",
    default="auto:fp32",
    callback=parse_settings,
    metavar="PROVIDER:PRECISION,…",
    help="Settings of mclst; the first is the reference of the ratios.",
)
@click.option("--batch-size", type=click.IntRange(1, 4096), default=16, help="Tiles encoded at once.")
@click.option("--workers", type=click.IntRange(1, 256), default=2, help="Reading threads.")
@click.option(
    "--repeats", type=click.IntRange(1), default=5, help="Rounds that count; one more precedes them."
)
@click.option(
    "--cold/--no-cold",
    default=True,
    help="Also measure cold start, and memory over a whole run, in fresh processes.",
)
@result_options(plot="Draw the stages (PNG).")
@command
def end_to_end(
    slide: Path,
    spots_path: Path,
    bundle_path: Path,
    ckpt: Path | None,
    truth: Path | None,
    section: str | None,
    settings: list[tuple[str, str]],
    batch_size: int,
    workers: int,
    repeats: int,
    cold: bool,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Measure runs from SLIDE and its spots to a map: stages, overlap, bound; beside the published notebook.

    Contenders take turns, each starting from the slide's file, with bundle or network in memory. mclst writes
    its .h5ad; the notebook stops at an array.
    """
    result_files.check()
    from mclst.benchmarks.contenders.cold_start import cold_start
    from mclst.benchmarks.contenders.inputs import check_slide, open_notebook, score_against_truth
    from mclst.benchmarks.contenders.peak_memory import measure_peak_memory
    from mclst.benchmarks.contenders.slide_runs import PUBLISHED
    from mclst.benchmarks.end_to_end.measure import measure
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.harness.measure import PeerUnavailable
    from mclst.benchmarks.harness.thermal_state import thermal_state
    from mclst.benchmarks.roofline import peaks as roofline_peaks
    from mclst.benchmarks.schemas.validate import validated
    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.runtime.resources import available_cores
    from mclst.sections.tables.spots import read_spots

    threads = available_cores()
    bundle, spots = open_bundle(bundle_path), read_spots(spots_path)
    # Before the processes, which would only say that they failed.
    check_slide(slide, spots)
    document = new_document("mclst-bench-end-to-end/1", threads=threads, bundle=bundle)
    state = partial(thermal_state, gpu=document["machine"]["gpu"] is not None)
    before = state()
    options: dict[str, dict[str, Any]] = {
        f"mclst {provider} {precision}": {
            "provider": provider,
            "batch_size": batch_size,
            "workers": workers,
            "precision": precision,
        }
        for provider, precision in settings
    }
    unavailable, notebook = [], None
    try:
        notebook = open_notebook(bundle, ckpt, slide, threads)
    except PeerUnavailable as error:
        unavailable.append({"name": PUBLISHED, "why": str(error)})
    graphs = [bundle.encoder(precision) for _, precision in settings]
    # Before the rounds: a setting that does not start fails early.
    cold_starts = [
        cold_start(
            graph, provider, precision, tile_px=bundle.manifest.tile.size_px, batch=batch_size, slide=slide,
            spots=spots_path, bundle=bundle_path,
        )
        for graph, (provider, precision) in zip(graphs, settings, strict=True)
        if cold
    ]  # fmt: skip
    with progress("rounds", repeats + 1, quiet=quiet) as advance:
        result, expression = measure(
            bundle, slide, spots,
            settings=options, notebook=notebook, rounds=repeats, on_round=partial(advance, 1),
        )  # fmt: skip
    if truth is not None:
        scores = score_against_truth(bundle, slide, spots, expression, truth, section)
        for entry in result["contenders"]:
            entry["against_truth"] = scores[entry["name"]]
    peaks = roofline_peaks.measure_peaks(threads, gpu=roofline_peaks.has_cuda())
    add_share_of_peak(result, bundle, peaks, batch_size)
    memory = [
        measure_peak_memory(
            entry["name"], "run", bundle_path=bundle_path, ckpt=ckpt, slide=slide, spots_path=spots_path,
            threads=threads, options=options.get(entry["name"], {}),
        )
        for entry in result["contenders"]
        if cold
    ]  # fmt: skip
    document |= {
        "condition": {"before": before, "after": state()},
        "peaks": peaks,
        "settings": {
            "rounds": repeats,
            "warm_up_rounds": 1,
            "interleaved": True,
            "threads": threads,
            "batch_size": batch_size,
            "workers": workers,
        },
        "slide": {"name": slide.name, "bytes": slide.stat().st_size},
        "result": result,
        "absent": unavailable,
        "cold_start": cold_starts,
        "memory": memory,
    }
    if not quiet:
        _show(document)

    def draw() -> bytes:
        from mclst.benchmarks.end_to_end.chart import stages_png

        return stages_png(document)

    result_files.publish(validated("end-to-end", document), draw)


def add_share_of_peak(result: dict[str, Any], bundle: Bundle, peaks: dict[str, Any], batch: int) -> None:
    """Add to each contender its encoder's operations per second, and their share of the measured peak."""
    from mclst.benchmarks.roofline.onnx_flops import UncountedNode, count_work
    from mclst.runtime.choices import ON_CPU

    try:
        work = count_work(bundle.encoder_path, batch)
    except UncountedNode as error:
        result["encoder_operations_per_tile"] = None
        say(f"Note: the encoder's operations are not counted: {error}")
        return
    result["encoder_operations_per_tile"] = work.products / batch
    for entry in result["contenders"]:
        precision = entry["name"].split()[-1] if entry["ours"] else "fp32"
        device = peaks["host" if entry["provider"] in ON_CPU else "cuda"]
        peak = None if device is None else device["operations_per_s"].get(precision)
        busy = entry["stages"]["stages"]["encode"]["busy_s"]
        rate = result["tiles"] * work.products / batch / busy
        entry["encoder_operations_per_s"] = rate
        entry["encoder_of_peak"] = None if peak is None else rate / peak


def _show(document: dict[str, Any]) -> None:
    from mclst.benchmarks.harness.tables import machine_line, show_memory, show_table, show_unavailable

    result = document["result"]
    say(machine_line(document))
    rows = []
    for entry in result["contenders"]:
        accuracy, of_peak = entry.get("against_truth"), entry.get("encoder_of_peak")
        pearson = entry["equal_to_first"]["pearson"]
        rows.append(
            (
                entry["name"],
                f"{entry['wall_s']['median']:.2f}",
                f"{entry['wall_s']['median_low95']:.2f} - {entry['wall_s']['median_high95']:.2f}",
                f"{entry['cpu_s']['median']:.2f}",
                f"{entry['tiles_per_s']['median']:.1f}",
                f"{entry['stream_tiles_per_s']['median']:.1f}",
                f"{entry['wall_to_first']:.2f}",
                f"{entry['cpu_to_first']:.2f}",
                "-" if of_peak is None else f"{100 * of_peak:.0f} %",
                "-" if pearson is None else f"{pearson:.7f}",
                "-" if accuracy is None or accuracy["pcc_acg"] is None else f"{accuracy['pcc_acg']:.4f}",
            )
        )
    show_table(
        f"{result['tiles']:,} tiles of {document['slide']['name']}, slide to map",
        ("", "wall s", "95 % of median", "CPU s", "tiles/s", "in stream", "× first", "× CPU", "of peak",
         "r to first", "PCC"),
        rows,
        bold={entry["name"] for entry in result["contenders"] if entry["ours"]},
    )  # fmt: skip
    for entry in result["contenders"]:
        say(f"{entry['name']}, on {entry['provider']}: {_stages_line(entry['stages'])}")
    for run in document["cold_start"]:
        steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in run["steps_s"].items())
        say(
            f"cold start, {run['provider']} {run['precision']}: {run['first_result_s']:.2f} s ({steps}); "
            f"peak memory {run['peak_rss_bytes'] / 2**20:,.0f} MiB"
        )
    show_memory(document["memory"])
    show_unavailable(document["absent"])


def _stages_line(stages: dict[str, Any]) -> str:
    parts = [
        f"{name} {stage['busy_s']:.2f} s ({100 * stage['share']:.0f} %)"
        for name, stage in stages["stages"].items()
        if stage is not None
    ]
    return (
        f"{', '.join(parts)}; busy {stages['overlap']:.2f} times the wall time; bound by {stages['bound']} "
        f"({100 * stages['bound_share']:.0f} % of the run)"
    )
