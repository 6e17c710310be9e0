"""`mclst-bench end-to-end`: options → runs in turns → table, JSON, picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from mclst.benchmarks.contenders.inputs import parse_settings
from mclst.benchmarks.harness import machine
from mclst.benchmarks.harness.errors import PeerUnavailable
from mclst.benchmarks.harness.result_files import ResultFiles, result_options
from mclst.benchmarks.harness.tables import show_memory, show_table, stamp
from mclst.benchmarks.schemas.common import new_document
from mclst.benchmarks.schemas.validate import checked
from mclst.runtime.cli.bundle_options import bundle_option
from mclst.runtime.console import command, progress, say

if TYPE_CHECKING:
    from mclst.benchmarks.contenders.slide_runs import F32
    from mclst.runtime.bundle.bundle import Bundle
    from mclst.sections.section import Spots

PATH = click.Path(path_type=Path)
SCHEMA = "mclst-bench-end-to-end/1"


@click.command(name="end-to-end", context_settings={"show_default": True})
@click.argument("slide", type=PATH)
@click.option("--spots", "spots_path", type=PATH, required=True, help="Table of spots, as for mclst-infer.")
@bundle_option
@click.option(
    "--ckpt",
    type=PATH,
    help="The checkpoint the bundle is of; with it the published notebook runs beside mclst.",
)
@click.option("--truth", type=PATH, help="Measured sections: says what each way's map is worth.")
@click.option("--section", help="The slide's section in --truth.  [default: by the slide's name]")
@click.option(
    "--settings",
    default="auto:fp32",
    callback=parse_settings,
    metavar="PROVIDER:PRECISION,…",
    help="Of mclst; the first is what the others are compared with.",
)
@click.option("--batch-size", type=click.IntRange(1, 4096), default=16, help="Tiles encoded at once.")
@click.option("--workers", type=click.IntRange(1, 256), default=2, help="Reading threads.")
@click.option(
    "--repeats", type=click.IntRange(1), default=5, help="Rounds counted; one more goes before them."
)
@click.option(
    "--cold/--no-cold",
    default=True,
    help="Fresh processes too: mclst up to its first expression, and everyone's memory over a whole run.",
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
    """From SLIDE and its spots to a map on disk: stages, overlap, what bounds the run; the published way beside it.

    Each way runs from the slide's file, in turns, with bundle or network in memory. mclst writes its .h5ad; the
    notebook stops at an array.
    """
    result_files.check((slide, spots_path, bundle_path, ckpt, truth))
    from mclst.benchmarks.contenders.cold_start import cold_start
    from mclst.benchmarks.contenders.inputs import open_notebook
    from mclst.benchmarks.contenders.peak_memory import measure_alone
    from mclst.benchmarks.contenders.slide_runs import PUBLISHED
    from mclst.benchmarks.end_to_end.measure import measure
    from mclst.benchmarks.harness.thermal_state import condition
    from mclst.benchmarks.roofline import peaks as peaks_of
    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.sections.tables.spots import read_spots

    started, where, threads = datetime.now(UTC), machine.describe(), machine.available_cores()
    bundle, spots = open_bundle(bundle_path), read_spots(spots_path)
    board = where["gpu"] is not None
    before = condition(gpu=board)
    ways: list[dict[str, Any]] = [
        {
            "name": f"mclst {provider} {precision}",
            "provider": provider,
            "batch_size": batch_size,
            "workers": workers,
            "precision": precision,
        }
        for provider, precision in settings
    ]
    absent = []
    try:
        notebook = open_notebook(bundle, ckpt, slide, threads)
    except PeerUnavailable as why:
        notebook = None
        absent.append({"name": PUBLISHED, "why": str(why)})
    graphs = [bundle.encoder(precision) for _, precision in settings]
    # A fresh process first: what cannot open says so before the rounds.
    fresh = [
        cold_start(
            graph, provider, precision, tile_px=bundle.manifest.tile.size_px, batch=batch_size, slide=slide,
            spots=spots_path, bundle=bundle_path,
        )
        for graph, (provider, precision) in zip(graphs, settings, strict=True)
        if cold
    ]  # fmt: skip
    with progress("rounds", repeats + 1, quiet=quiet) as advance:
        found, expression = measure(
            bundle, slide, spots,
            settings=ways, notebook=notebook, rounds=repeats, done=partial(advance, 1),
        )  # fmt: skip
    if truth is not None:
        worth = _worth(expression, spots, bundle, slide, truth, section)
        for entry in found["contenders"]:
            entry["against_truth"] = worth[entry["name"]]
    peaks = peaks_of.measure_peaks(threads, gpu=peaks_of.has_cuda())
    _hold_against_peak(found, bundle, peaks, batch_size)
    how = {way["name"]: {key: value for key, value in way.items() if key != "name"} for way in ways}
    held = [
        measure_alone(
            entry["name"], "run", bundle=bundle_path, ckpt=ckpt, slide=slide, spots=spots_path, threads=threads,
            how=how.get(entry["name"], {}),
        )
        for entry in found["contenders"]
        if cold
    ]  # fmt: skip
    content = {
        **new_document(SCHEMA, started, where, threads, bundle),
        "condition": {"before": before, "after": condition(gpu=board)},
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
        "result": found,
        "absent": absent,
        "cold_start": fresh,
        "memory": held,
    }
    if not quiet:
        _show(content)
    result_files.publish(lambda: checked("end-to-end", content), lambda: _picture(content))


def _picture(content: dict[str, Any]) -> bytes:
    from mclst.benchmarks.end_to_end.chart import stages_png

    return stages_png(content)


def _worth(
    expression: dict[str, F32], spots: Spots, bundle: Bundle, slide: Path, truth: Path, section: str | None
) -> dict[str, dict[str, float | None]]:
    """Scores of each way's expression against the measured section."""
    from mclst.runtime.expression_map.measured import Predicted, choose_section, pair_with_truth
    from mclst.sections.accuracy import score

    predicted = Predicted(
        path=slide,
        spot=spots.id,
        genes=np.asarray(bundle.genes, np.str_),
        expression=np.empty(0),
        xy_px=spots.xy_px,
        slide=(slide.stem,),
        normalisation=bundle.manifest.normalisation.expression,
    )
    source = choose_section(predicted, truth, section)
    found = {}
    for name, values in expression.items():
        pair = pair_with_truth(dataclasses.replace(predicted, expression=values.astype(np.float64)), source)
        scored = score(pair.predicted, pair.truth)
        held = {measure: float(getattr(scored, measure)) for measure in ("pcc_acg", "pcc_heg", "mse", "mae")}
        found[name] = {"spots": len(pair.spot), **{m: v if np.isfinite(v) else None for m, v in held.items()}}
    return found


def _hold_against_peak(found: dict[str, Any], bundle: Bundle, peaks: dict[str, Any], batch: int) -> None:
    """To each contender the share of its processor's or device's measured peak, in its precision, that its encoder reached."""
    from mclst.benchmarks.roofline.onnx_flops import Uncounted, count
    from mclst.runtime.inference.providers import ON_CPU

    try:
        work = count(bundle.encoder_path, batch)
    except Uncounted as why:
        found["encoder_operations_per_tile"] = None
        say(f"Note: the encoder's operations are not counted: {why}")
        return
    found["encoder_operations_per_tile"] = work.products / batch
    for entry in found["contenders"]:
        precision = entry["name"].split()[-1] if entry["ours"] else "fp32"
        side = peaks["host" if entry["provider"] in ON_CPU else "cuda"]
        peak = None if side is None else side["operations_per_s"].get(precision)
        busy = entry["stages"]["stages"]["encode"]["busy_s"]
        rate = found["tiles"] * work.products / batch / busy
        entry["encoder_operations_per_s"] = rate
        entry["encoder_of_peak"] = None if peak is None else rate / peak


def _show(content: dict[str, Any]) -> None:
    found = content["result"]
    say(stamp(content))
    rows = []
    for entry in found["contenders"]:
        worth, of_peak = entry.get("against_truth"), entry.get("encoder_of_peak")
        same = entry["equal_to_first"]
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
                f"{same['pearson']:.7f}" if same["pearson"] is not None else "-",
                "-" if worth is None or worth["pcc_acg"] is None else f"{worth['pcc_acg']:.4f}",
            )
        )
    show_table(
        f"{found['tiles']:,} tiles of {content['slide']['name']}, slide to map",
        ("", "wall s", "95 % of median", "CPU s", "tiles/s", "in stream", "× first", "× CPU", "of peak", "r to first", "PCC"),
        rows,
        bold={entry["name"] for entry in found["contenders"] if entry["ours"]},
    )  # fmt: skip
    for entry in found["contenders"]:
        say(f"{entry['name']}, on {entry['provider']}: {_in_words(entry['stages'])}")
    for run in content["cold_start"]:
        steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in run["steps_s"].items())
        say(
            f"cold start, {run['provider']} {run['precision']}: {run['first_result_s']:.2f} s ({steps}); "
            f"peak memory {run['peak_rss_bytes'] / 2**20:,.0f} MiB"
        )
    show_memory(content["memory"])
    for missing in content["absent"]:
        say(f"not run here: {missing['name']} ({missing['why']})")


def _in_words(stages: dict[str, Any]) -> str:
    held = [(name, stage) for name, stage in stages["stages"].items() if stage is not None]
    parts: Sequence[str] = [
        f"{name} {stage['busy_s']:.2f} s ({100 * stage['share']:.0f} %)" for name, stage in held
    ]
    return (
        f"{', '.join(parts)}; busy {stages['overlap']:.2f} times the wall time; bound by {stages['bound']} "
        f"({100 * stages['bound_share']:.0f} % of the run)"
    )
