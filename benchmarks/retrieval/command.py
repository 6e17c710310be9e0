"""`mclst-bench retrieval`."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

import click

from mclst.benchmarks.harness import machine
from mclst.benchmarks.harness.result_files import ResultFiles, result_options
from mclst.benchmarks.harness.tables import show_table, stamp
from mclst.benchmarks.retrieval.cases import CASES, KINDS
from mclst.benchmarks.retrieval.chart import retrieval_png
from mclst.benchmarks.retrieval.measure import NothingToMeasure, measure
from mclst.benchmarks.retrieval.peers import PEERS
from mclst.benchmarks.roofline.peaks import has_cuda
from mclst.benchmarks.roofline.retrieval_bound import Peaks, cuda_peaks, host_peaks
from mclst.benchmarks.schemas.common import new_document
from mclst.kernels.retriever import PROVIDERS
from mclst.runtime.console import command, progress, say
from mclst.runtime.errors import ResourceError


def _providers(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in PROVIDERS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(PROVIDERS)}")
    return list(dict.fromkeys(names))


@click.command()
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="Default: all of them.")
@click.option("--n", "sizes", type=click.IntRange(1), multiple=True, help="Queries; default 1000.")
@click.option("--data", "kinds", type=click.Choice(KINDS), multiple=True, help="Default: both.")
@click.option(
    "--providers",
    default=",".join(name for name in PROVIDERS if name != "reference"),
    callback=_providers,
    help="Of mclst; the first that runs here is compared with.",
)
@click.option("--peers/--no-peers", default=True, help="Others' ways beside it.")
@click.option("--repeats", type=click.IntRange(1), default=7, help="Rounds counted.")
@result_options(plot="Draw the times (PNG).")
@command
def retrieval(
    cases: tuple[str, ...],
    sizes: tuple[int, ...],
    kinds: tuple[str, ...],
    providers: list[str],
    peers: bool,
    repeats: int,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Embeddings to expression: time, ratio, and the fraction of what this machine could do at best."""
    result_files.check()
    started, where, threads = datetime.now(UTC), machine.describe(), machine.available_cores()
    peaks, cuda = host_peaks(threads), _cuda_peaks()
    chosen, results = PEERS if peers else (), []
    for name in cases or tuple(CASES):
        for kind in kinds or KINDS:
            for n in sizes or (1000,):
                with progress(f"{name}, {kind}, N = {n:,}", repeats + 1, quiet=quiet) as advance:
                    try:
                        found = measure(
                            CASES[name],
                            kind,
                            n=n,
                            providers=providers,
                            rounds=repeats,
                            threads=threads,
                            peaks=peaks,
                            cuda_peaks=cuda,
                            peers=chosen,
                            done=partial(advance, 1),
                        )
                    except NothingToMeasure as error:
                        raise ResourceError(str(error)) from error
                results.append(found)
                if not quiet:
                    _show(found)
    content = {
        **new_document("mclst-bench-retrieval/1", started, where, threads),
        "peaks": {"host": vars(peaks), "cuda": cuda and vars(cuda)},
        "settings": {"rounds": repeats, "warm_up_rounds": 1, "threads": threads, "interleaved": True},
        "results": results,
    }
    say(stamp(content), quiet=quiet)
    result_files.publish(
        lambda: content, lambda: retrieval_png(results, f"Retrieval on {where['cpu']}, {threads} cores")
    )


def _cuda_peaks() -> Peaks | None:
    return cuda_peaks() if has_cuda() else None


def _show(result: dict[str, Any]) -> None:
    shape = result["shape"]
    rows = []
    for entry in sorted(result["contenders"], key=lambda entry: float(entry["wall_s"]["median"])):
        wall = entry["wall_s"]
        rows.append(
            (
                entry["name"],
                f"{1e3 * wall['median']:.1f}",
                f"{1e3 * wall['median_low95']:.1f} - {1e3 * wall['median_high95']:.1f}",
                f"{1e3 * entry['cpu_s']['median']:.1f}",
                f"{entry['wall_to_ours']:.2f}",
                f"{entry['cpu_to_ours']:.2f}",
                f"{100 * entry['fraction_of_bound']:.0f} %",
                f"{entry['error']:.0e}",
            )
        )
    show_table(
        f"{result['case']}, {result['data']}: N = {shape['n']:,}, M = {shape['m']:,}, k = {shape['k']}, "
        f"G = {shape['genes']}",
        ("", "wall ms", "95 % of median", "CPU ms", "× ours", "× CPU", "of bound", "error"),
        rows,
        bold={entry["name"] for entry in result["contenders"] if entry["ours"]},
    )
    for missing in result["absent"]:
        say(f"  not run here: {missing['name']} ({missing['why']})")
