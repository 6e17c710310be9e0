"""`mclst-bench systems` and `mclst-bench precision`."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.choices import PROVIDERS
from mclst.runtime.cli.bundle_options import bundle_option
from mclst.runtime.click_types import PATH
from mclst.runtime.console import command, progress, say
from mclst.runtime.errors import InputError, needs_extra

SYSTEMS = ("mclstexp", "bleep", "stnet", "histogene", "hist2st", "thitogene")
HEADS = ("ridge", "knn", "blend")
"""Of mclst-fit, on EfficientNet-Lite0."""


@click.command()
@click.option(
    "--system",
    "chosen",
    type=click.Choice((*SYSTEMS, *HEADS)),
    multiple=True,
    help="Only this system or head; repeatable.",
)
@click.option("--spots", type=click.IntRange(1), default=184, help="Tiles.")
@click.option("--batch-size", type=click.IntRange(1), default=32, help="Tiles encoded at once.")
@click.option("--provider", type=click.Choice(PROVIDERS), default="auto", help="What runs the graphs.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Rounds.")
@click.option(
    "--memory", type=click.IntRange(1), help="Also measure peak memory on a slide of this many spots."
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
    """Measure tiles per second to expression: the six systems in their published sizes, and fitted heads.

    Weights are random; the heads are on EfficientNet-Lite0. The tiles are in memory; `mclst-bench tiles`
    measures reading.
    """
    result_files.check()
    with needs_extra("export,cpu"):
        from mclst.benchmarks.systems.exported_systems import PUBLISHED, ExportedSystem, measure
        from mclst.benchmarks.systems.slide_memory import measure_in_subprocess
    from mclst.benchmarks.harness.machine import new_document

    document = new_document("mclst-bench-systems/1")
    names = chosen or (*SYSTEMS, *HEADS)
    with tempfile.TemporaryDirectory() as folder:
        exported = {}
        with progress("exporting", len(names), quiet=quiet) as advance:
            for name in names:
                exported[name] = ExportedSystem(
                    name, PUBLISHED[name], Path(folder) / name, provider, batch_size
                )
                advance(1)
        with progress("rounds", repeats, quiet=quiet) as advance:
            result = measure(
                exported, spots=spots, batch=batch_size, rounds=repeats, on_round=partial(advance, 1)
            )
        for name, system in exported.items():
            if memory is not None and system.slide_graph_path is not None:
                say(f"{name} over {memory:,} spots", quiet=quiet)
                result["systems"][name]["memory"] = measure_in_subprocess(
                    system.slide_graph_path, system.settings, memory
                )
    if not quiet:
        _show_systems(result)
    document["settings"] = {
        "spots": spots, "batch_size": batch_size, "rounds": repeats, "weights": "random",
    }  # fmt: skip
    result_files.publish(document | result)


def _show_systems(results: dict[str, Any]) -> None:
    from mclst.benchmarks.harness.tables import show_table

    rows = []
    for name, result in results["systems"].items():
        rates = (f"{result['tiles_per_second'][part]['median']:,.1f}" for part in ("tiles", "all"))
        then = f"{result['after']}, {result['rest_seconds']['median']:.2f} s" if result["after"] else "-"
        rows.append((name, *rates, result["provider"], then))
    show_table("", ("", "tiles/s", "to expression", "provider", "then"), rows)
    for name, result in results["systems"].items():
        if "memory" in result:
            usage = result["memory"]
            say(
                f"{name}: {usage['peak_mib']:,} MiB at the peak over {usage['spots']:,} spots "
                f"({usage['open_mib']:,} before the run), {usage['seconds']:,} s"
            )


@click.command()
@click.argument("slide", type=PATH)
@click.option("--spots", "spots_path", type=PATH, required=True, help="Table of spots, as for mclst-infer.")
@bundle_option
@click.option("--truth", type=PATH, help="Measured sections to score each precision against.")
@click.option("--section", help="The slide's section in --truth.  [default: by the slide's name]")
@click.option("--provider", type=click.Choice(PROVIDERS), default="auto", help="What runs the encoders.")
@click.option("--timed-tiles", type=click.IntRange(1), default=64, help="Tiles to time.")
@click.option("--repeats", type=click.IntRange(1), default=5, help="Rounds.")
@result_options()
@command
def precision(
    slide: Path,
    spots_path: Path,
    bundle_path: Path,
    truth: Path | None,
    section: str | None,
    provider: str,
    timed_tiles: int,
    repeats: int,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Compare a bundle's fp16, bf16 and int8 encoders with fp32 at the spots of SLIDE: accuracy, speed."""
    result_files.check()
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.systems.precision import measure
    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.sections.tables.spots import read_spots

    document = new_document("mclst-bench-precision/1")
    bundle = open_bundle(bundle_path)
    if len(bundle.precisions) == 1:
        raise InputError(f"{bundle_path} has only an fp32 encoder; export it with --precision fp16,int8")
    with progress("rounds", repeats + 1, quiet=quiet) as advance:
        result = measure(
            bundle, slide, read_spots(spots_path), truth, section,
            provider=provider, rounds=repeats, timed=timed_tiles, on_round=partial(advance, 1),
        )  # fmt: skip
    m = bundle.manifest
    if not quiet:
        _show_precisions(result)
    document |= {
        "slide": slide.name,
        "bundle": {
            "system": m.system,
            "encoder": m.encoder.name,
            "tile_px": m.tile.size_px,
            "bank_spots": m.bank_rows,
            "checkpoint_sha256": m.checkpoint.sha256,
        },
        "results": result,
    }
    result_files.publish(document)


def _show_precisions(results: dict[str, Any]) -> None:
    from mclst.benchmarks.harness.tables import show_table

    headings, *rows = precision_rows(results)
    show_table(f"{results['tiles']} tiles, against fp32", headings, rows)
    for name, why in results["not_as_it_is"].items():
        say(f"{name} does not run natively: {why}")


def precision_rows(results: dict[str, Any]) -> list[list[str]]:
    """Rows of the table, heading first."""
    lines = [["", "r/gene", "top 50", "top k", "cosine", "PCC ACG", "PCC HEG", "CPU ms", "× fp32"]]
    for precision, entry in results["precisions"].items():
        figures, truth = entry["against_fp32"], entry.get("against_measured", {})
        neighbors, embedding = figures.get("neighbours", {}), figures.get("embedding", {})
        cost = entry.get("cpu_ms_per_tile", {})
        cells = (
            (figures["expression"]["pearson_per_gene_mean"], ".4f"),
            (neighbors.get("overlap_at_50"), ".3f"),
            (neighbors.get("overlap_mean"), ".3f"),
            (embedding.get("cosine_min"), ".4f"),
            (truth.get("pcc_acg"), ".4f"),
            (truth.get("pcc_heg"), ".4f"),
            (cost.get("median"), ".1f"),
            (entry.get("times_fp32"), ".2f"),
        )
        lines.append([precision, *("–" if value is None else format(value, form) for value, form in cells)])
    return lines
