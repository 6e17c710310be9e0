"""`mclst-bench retrieval`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.benchmarks.retrieval.cases import CASES, KINDS
from mclst.runtime.choices import RETRIEVERS
from mclst.runtime.console import command, progress, say
from mclst.runtime.errors import ResourceError


def _parse_providers(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in RETRIEVERS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(RETRIEVERS)}")
    return list(dict.fromkeys(names))


@click.command()
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="Default: all of them.")
@click.option("--n", "sizes", type=click.IntRange(1), multiple=True, help="Queries; default 1000.")
@click.option("--data", "kinds", type=click.Choice(KINDS), multiple=True, help="Default: both.")
@click.option(
    "--providers",
    default=",".join(name for name in RETRIEVERS if name != "reference"),
    callback=_parse_providers,
    help="Providers of mclst; the first that runs here is the reference of the ratios.",
)
@click.option("--peers/--no-peers", "with_peers", default=True, help="Also run other libraries.")
@click.option("--repeats", type=click.IntRange(1), default=7, help="Rounds that count.")
@result_options(plot="Draw the times (PNG).")
@command
def retrieval(
    cases: tuple[str, ...],
    sizes: tuple[int, ...],
    kinds: tuple[str, ...],
    providers: list[str],
    with_peers: bool,
    repeats: int,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Measure retrieval: embeddings to expression, beside other libraries and the machine's roofline."""
    result_files.check()
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.harness.tables import machine_line
    from mclst.benchmarks.retrieval.measure import NothingToMeasure, measure
    from mclst.benchmarks.retrieval.peers import PEERS
    from mclst.benchmarks.roofline import peaks
    from mclst.runtime.resources import available_cores

    threads = available_cores()
    document = new_document("mclst-bench-retrieval/1", threads=threads)
    host, cuda = peaks.host_peaks(threads), peaks.cuda_peaks() if peaks.has_cuda() else None
    results: list[dict[str, Any]] = []
    document |= {
        "peaks": {"host": vars(host), "cuda": cuda and vars(cuda)},
        "settings": {"rounds": repeats, "warm_up_rounds": 1, "threads": threads, "interleaved": True},
        "results": results,
    }
    runs = [(name, kind, n) for name in cases or CASES for kind in kinds or KINDS for n in sizes or (1000,)]
    for name, kind, n in runs:
        with progress(f"{name}, {kind}, N = {n:,}", repeats + 1, quiet=quiet) as advance:
            try:
                result = measure(
                    CASES[name], kind, n=n, providers=providers, rounds=repeats, threads=threads, peaks=host,
                    cuda_peaks=cuda, peers=PEERS if with_peers else (), on_round=partial(advance, 1),
                )  # fmt: skip
            except NothingToMeasure as error:
                raise ResourceError(str(error)) from error
        results.append(result)
        if not quiet:
            _show(result)
    say(machine_line(document), quiet=quiet)

    def draw() -> bytes:
        from mclst.benchmarks.retrieval.chart import retrieval_png

        return retrieval_png(results, f"Retrieval on {document['machine']['cpu']}, {threads} cores")

    result_files.publish(document, draw)


def _show(result: dict[str, Any]) -> None:
    from mclst.benchmarks.harness.tables import show_table, show_unavailable

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
    show_unavailable(result["absent"])
