"""`mclst-bench load`: a server's latency against the number of clients → table, JSON, picture."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from mclst.benchmarks.harness import machine
from mclst.benchmarks.harness.result_files import ResultFiles, result_options
from mclst.benchmarks.harness.tables import show_table
from mclst.benchmarks.schemas.common import new_document
from mclst.benchmarks.serving.measure import measure
from mclst.runtime.console import Finite, command, progress, say
from mclst.runtime.errors import InputError
from mclst.runtime.report.figures.style import content, open_frame
from mclst.runtime.serving.connection import Server
from mclst.runtime.serving.remote_session import ServedBundleProxy

LEVELS = ("p50", "p90", "p99")
CLIENTS = (1, 2, 4, 8, 16, 32)


@click.command("load", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--server", "url", required=True, metavar="URL", help="http://HOST:PORT or grpc://HOST:PORT.")
@click.option("--server-model", "model", default="mclst", help="Its model.")
@click.option(
    "--clients",
    type=click.IntRange(1, 1024),
    multiple=True,
    help="At once, each with one request under way; default 1, 2, 4, 8, 16 and 32.",
)
@click.option(
    "--requests",
    type=click.IntRange(1),
    default=1000,
    help="Of all clients together, each time; p99 takes 1000.",
)
@click.option("--batch", type=click.IntRange(1), default=1, help="Tiles in a request.")
@click.option("--warm-up", type=click.IntRange(1), default=2, help="Requests of each client before.")
@click.option(
    "--server-patience",
    "patience",
    type=Finite(1, 86_400),
    default=120.0,
    help="Seconds that a client goes on without an answer.",
)
@result_options(plot="Draw latency against tiles a second (PNG).")
@command
def load(
    url: str,
    model: str,
    clients: tuple[int, ...],
    requests: int,
    batch: int,
    warm_up: int,
    patience: float,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Latency of a server of mclst-export --triton against the number of clients, and what it turns away.

    A client sends its next request as soon as it has the answer to the last. A latency is all that a client waits: a
    request that is turned away is sent again after a pause, as mclst-infer does, and its time goes on.
    """
    result_files.check()
    started, where = datetime.now(UTC), machine.describe()
    with Server(url, model, patience_s=patience) as server:
        if batch > server.batch:
            raise InputError(
                f"{url} takes {server.batch} tiles in a request and not {batch}; give a smaller --batch"
            )
        served = server.served
        results = []
        for count in sorted(set(clients or CLIENTS)):
            with progress(f"requests of {count} clients", requests, quiet=quiet) as advance:
                results.append(
                    measure(
                        server, count, requests, batch, warm_up=warm_up, patience_s=patience, advance=advance
                    )
                )
    document = {
        **new_document("mclst-bench-load/1", started, where, where["cores"], ServedBundleProxy.of(server)),
        "server": {
            "protocol": server.address.protocol,
            "program": server.program,
            "backend": served.backend,
            "retriever": served.retriever,
            "precision": served.precision,
            "max_batch": served.max_batch,
            "versions": served.versions,
        },
        "settings": {"requests": requests, "batch": batch, "warm_up": warm_up, "tiles": "noise"},
        "results": results,
    }
    if not quiet:
        show_load(document)
    result_files.publish(lambda: document, lambda: load_png(document))


def show_load(document: dict[str, Any]) -> None:
    """Print a document of `mclst-bench load` for people."""
    where, server = document["machine"], document["server"]
    say(
        f"{server['program']} by {server['protocol']}, {server['backend']} {server['precision']}, retrieval "
        f"{server['retriever']}; client on {where['cpu']}, {where['cores']} cores, machine {document['verdict']} at the "
        f"start (load {where['load_at_start']})"
    )
    rows = [
        (
            str(result["concurrency"]),
            *(_ms(result["latency_s"]["percentiles"].get(level)) for level in LEVELS),
            f"{1e3 * result['latency_s']['max']:.1f}",
            f"{result['requests_per_s']:.1f}",
            f"{result['tiles_per_s']:.1f}",
            f"{result['rejected']:,}",
            f"{result['lost']:,}",
            f"{100 * result['client_cpu_of_core']:.0f} %",
        )
        for result in document["results"]
    ]
    title = f"{document['settings']['requests']:,} requests of {document['settings']['batch']} tiles, ms until answered"
    headings = ("clients", *LEVELS, "max", "requests/s", "tiles/s", "rejected", "lost", "client CPU")
    show_table(title, headings, rows)


def _ms(told: dict[str, Any] | None) -> str:
    return "-" if told is None else f"{1e3 * told['s']:.1f}"


def load_png(document: dict[str, Any]) -> bytes:
    """PNG: latency percentiles against tiles a second, a point for each number of clients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=150)
    axes = figure.subplots()
    for level, color in zip(LEVELS, ("#1b6ca8", "#c98a2b", "#b04a3a"), strict=True):
        points = [
            (
                result["tiles_per_s"],
                1e3 * result["latency_s"]["percentiles"][level]["s"],
                result["concurrency"],
            )
            for result in document["results"]
            if level in result["latency_s"]["percentiles"]
        ]
        if not points:
            continue
        rate, ms, _ = zip(*points, strict=True)
        axes.plot(rate, ms, "o-", color=color, label=level, markersize=4)
        if level == LEVELS[0]:
            for x, y, count in points:
                axes.annotate(
                    f"{count}", (x, y), (0, -11), textcoords="offset points", ha="center", fontsize=7
                )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tiles a second, all clients together (numbers: clients)")
    axes.set_ylabel("ms until answered")
    axes.set_title(f"{document['server']['program']} by {document['server']['protocol']}", fontsize=10)
    axes.legend(frameon=False)
    open_frame(axes)
    return content(figure)
