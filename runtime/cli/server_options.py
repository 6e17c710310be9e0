"""`--server`: its options, and a bundle that is here or behind a server, opened for one slide or many."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.console import Finite
from mclst.runtime.inference.loaded_model import ModelCache
from mclst.runtime.progress import Tell
from mclst.runtime.serving.client import Address

DECIDED_THERE = (
    *("bundle_path", "provider", "build", "precision", "retriever", "memory_budget"),
    *("k", "rank", "distance", "weighting", "temperature"),
)
"""What the server's bundle decides, by the names of the options' values."""

PATIENCE_S, AT_ONCE = 120.0, 8


@dataclass(frozen=True)
class ServerOptions:
    """What the command line says of a server; url: None, the bundle is here. batch: the most tiles of a request."""

    url: str | None = None
    model: str = "mclst"
    patience_s: float = PATIENCE_S
    at_once: int = AT_ONCE
    batch: int | None = None


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle, what is opened of it, and the arguments of `predict` that follow from where it is."""

    bundle: Bundle
    opened: ModelCache
    settings: dict[str, Any]


OPTIONS = (
    click.option(
        "--server",
        "server_url",
        metavar="URL",
        help="Instead of --bundle: a server of mclst-export --triton, http://HOST:PORT or grpc://HOST:PORT.",
    ),
    click.option("--server-model", metavar="NAME", default="mclst", help="Of --server: its model."),
    click.option(
        "--server-patience",
        type=Finite(1, 86_400),
        default=PATIENCE_S,
        metavar="SECONDS",
        help="Of --server: how long it may give no answer at all before the run stops.",
    ),
    click.option(
        "--server-requests",
        type=click.IntRange(1, 64),
        default=AT_ONCE,
        metavar="N",
        help="Of --server: the most requests at once; fewer while it is overloaded.",
    ),
)


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click callback these options, and hand it what they say as `server`, a ServerOptions."""

    @functools.wraps(function)
    def wrapped(**given: Any) -> Any:
        url, model = given.pop("server_url"), given.pop("server_model")
        patience, requests = given.pop("server_patience"), given.pop("server_requests")
        ctx = click.get_current_context()

        def said(name: str) -> bool:
            return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE

        if url is None:
            alone = [n for n in ("server_model", "server_patience", "server_requests") if said(n)]
            if alone:
                raise click.UsageError(f"{_option(ctx, alone[0])} belongs to --server")
            return function(server=ServerOptions(), **given)
        for name in DECIDED_THERE:
            if said(name):
                raise click.UsageError(f"{_option(ctx, name)} is for the server to decide; leave it out")
        try:
            Address.of(url)
        except ValueError as error:
            raise click.UsageError(f"--server: {error}") from error
        batch = given["batch_size"] if said("batch_size") else None
        return function(server=ServerOptions(url, model, patience, requests, batch), **given)

    for option in reversed(OPTIONS):
        wrapped = option(wrapped)
    return wrapped


@contextmanager
def ready(server: ServerOptions, bundle_path: Path, tell: Tell) -> Iterator[OpenedBundle]:
    """The bundle that the command line names, opened. Raises what `open_bundle` and `Server` raise."""
    if server.url is None:
        yield OpenedBundle(open_bundle(bundle_path), ModelCache(), {})
        return
    from mclst.runtime.serving.connection import Server
    from mclst.runtime.serving.remote_session import ServedBundleProxy, ServerModel

    with Server(
        server.url,
        server.model,
        patience_s=server.patience_s,
        at_once=server.at_once,
        batch=server.batch,
        tell=tell,
    ) as opened:
        here = ServerModel(opened)
        yield OpenedBundle(ServedBundleProxy.of(opened), here, here.settings)


def _option(ctx: click.Context, name: str) -> str:
    return next(param.opts[0] for param in ctx.command.params if param.name == name)
