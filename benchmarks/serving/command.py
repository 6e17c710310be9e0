"""`mclst-bench load`."""

from __future__ import annotations

from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.click_types import SETTINGS, Finite
from mclst.runtime.console import command, progress, say
from mclst.runtime.errors import InputError

LEVELS = ("p50", "p90", "p99")
CLIENTS = (1, 2, 4, 8, 16, 32)


@click.command(context_settings=SETTINGS)
@click.option("--server", "url", required=True, metavar="URL", help="http://HOST:PORT or grpc://HOST:PORT.")
@click.option("--server-model", "model", default="mclst", help="Name of its model.")
@click.option(
    "--clients",
    type=click.IntRange(1, 1024),
    multiple=True,
    help="Concurrent clients, one request each; default 1, 2, 4, 8, 16 and 32.",
)
@click.option(
    "--requests",
    type=click.IntRange(1),
    default=1000,
    help="Of all clients together, per run; p99 needs 1000.",
)
@click.option("--batch", type=click.IntRange(1), default=1, help="Tiles per request.")
@click.option(
    "--warm-up", type=click.IntRange(1), default=2, help="Uncounted requests of each client before."
)
@click.option(
    "--server-patience",
    "patience",
    type=Finite(1, 86_400),
    default=120.0,
    help="Seconds a client waits without an answer.",
)
@result_options(plot="Draw latency against tiles per second (PNG).")
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
    """Measure the latency of a server of mclst-export --triton against the number of clients.

    A client sends its next request when the last is answered. A request that the server rejects is sent again
    after a pause, as mclst-infer does, and its time continues.
    """
    result_files.check()
    from mclst.benchmarks.harness.machine import new_document
    from mclst.benchmarks.serving.measure import measure
    from mclst.runtime.serving.connection import Server

    results: list[dict[str, Any]] = []
    with Server(url, model, patience_s=patience) as server:
        document = new_document("mclst-bench-load/1", bundle=server.served.bundle)
        if batch > server.batch:
            raise InputError(
                f"{url} takes {server.batch} tiles in a request and not {batch}; give a smaller --batch"
            )
        served = server.served
        for count in sorted(set(clients or CLIENTS)):
            with progress(f"requests of {count} clients", requests, quiet=quiet) as advance:
                results.append(
                    measure(
                        server, count, requests, batch, warm_up=warm_up, patience_s=patience, advance=advance
                    )
                )
    document |= {
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
        _show(document)

    def draw() -> bytes:
        from mclst.benchmarks.serving.chart import load_png

        return load_png(document)

    result_files.publish(document, draw)


def _show(document: dict[str, Any]) -> None:
    from mclst.benchmarks.harness.tables import show_table

    machine, server = document["machine"], document["server"]
    say(
        f"{server['program']} by {server['protocol']}, {server['backend']} {server['precision']}, retrieval "
        f"{server['retriever']}; client on {machine['cpu']}, {machine['cores']} cores, "
        f"machine {document['verdict']} at the start (load {machine['load_at_start']})"
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
    settings = document["settings"]
    title = f"{settings['requests']:,} requests of {settings['batch']} tiles, ms until answered"
    headings = ("clients", *LEVELS, "max", "requests/s", "tiles/s", "rejected", "lost", "client CPU")
    show_table(title, headings, rows)


def _ms(percentile: dict[str, Any] | None) -> str:
    return "-" if percentile is None else f"{1e3 * percentile['s']:.1f}"
