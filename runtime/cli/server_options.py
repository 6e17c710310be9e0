"""`--server` and its options; opening the model, which is here or behind a server."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.runtime.bundle.location import BundleLocation
from mclst.runtime.cli.bundle_options import open_any_bundle
from mclst.runtime.click_types import PATH, Finite, add_options, on_command_line, option_name, refuse_unowned
from mclst.runtime.progress import Notify

if TYPE_CHECKING:
    from mclst.runtime.inference.model import Model
    from mclst.runtime.sharing.signature import Trusted

DECIDED_BY_SERVER = (
    *("bundle_path", "provider", "build", "precision", "retriever", "memory_budget"),
    *("k", "rank", "distance", "weighting", "temperature"),
)
"""Options that do not go with --server."""

PATIENCE_S, REQUESTS = 120.0, 8


@dataclass(frozen=True)
class ServerOptions:
    """How to reach a server; url: None if the bundle is here. batch: most tiles per request."""

    url: str | None = None
    model: str = "mclst"
    patience_s: float = PATIENCE_S
    at_once: int = REQUESTS
    batch: int | None = None
    ca: Path | None = None


OPTIONS = (
    click.option(
        "--server",
        "server_url",
        metavar="URL",
        help="Instead of --bundle: a server of mclst-export --triton, by http://, https://, grpc:// or "
        "grpcs:// with HOST:PORT. MCLST_SERVER_TOKEN is sent to it as a bearer token.",
    ),
    click.option(
        "--server-ca",
        type=PATH,
        metavar="FILE.pem",
        help="Certificates to trust for https:// and grpcs://.  [default: the system's]",
    ),
    click.option("--server-model", metavar="NAME", default="mclst", help="Model on the server."),
    click.option(
        "--server-patience",
        type=Finite(1, 86_400),
        default=PATIENCE_S,
        metavar="SECONDS",
        help="How long the server may give no answer before the run stops.",
    ),
    click.option(
        "--server-requests",
        type=click.IntRange(1, 64),
        default=REQUESTS,
        metavar="N",
        help="Most requests at once; fewer while the server is overloaded.",
    ),
)


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add these options to a click callback, which gets them as `server`, a ServerOptions."""

    @functools.wraps(function)
    def wrapped(**values: Any) -> Any:
        url, model, ca = values.pop("server_url"), values.pop("server_model"), values.pop("server_ca")
        patience, requests = values.pop("server_patience"), values.pop("server_requests")
        ctx = click.get_current_context()

        if url is None:
            refuse_unowned("--server", "server_model", "server_patience", "server_requests", "server_ca")
            return function(server=ServerOptions(), **values)
        for name in DECIDED_BY_SERVER:
            if on_command_line(ctx, name):
                raise click.UsageError(f"{option_name(ctx, name)} is for the server to decide; leave it out")
        from mclst.runtime.serving.client import Address

        try:
            encrypted = Address.of(url).encrypted
        except ValueError as error:
            raise click.UsageError(f"--server: {error}") from error
        if ca is not None and not encrypted:
            raise click.UsageError("--server-ca belongs to https:// and grpcs://")
        batch = ctx.params["batch_size"] if on_command_line(ctx, "batch_size") else None
        return function(server=ServerOptions(url, model, patience, requests, batch, ca), **values)

    return add_options(*OPTIONS)(wrapped)


@contextmanager
def open_model(
    server: ServerOptions,
    bundle_path: BundleLocation,
    trusted: Trusted | None,
    notify: Notify,
    slides: int = 1,
) -> Iterator[Model]:
    """Open the bundle or the server on the command line; slides: see `LoadedModel`."""
    if server.url is None:
        from mclst.runtime.inference.loaded_model import LoadedModel

        model = LoadedModel(open_any_bundle(bundle_path, trusted, notify), slides=slides)
        try:
            yield model
        finally:
            model.wait()
        return
    if trusted is not None:
        raise click.UsageError(
            "--require-signature checks a bundle here, and a server's is elsewhere; leave one of them out"
        )
    from mclst.runtime.serving.connection import Server
    from mclst.runtime.serving.security import Credentials
    from mclst.runtime.serving.served_model import ServedModel

    with Server(
        server.url,
        server.model,
        patience_s=server.patience_s,
        at_once=server.at_once,
        batch=server.batch,
        notify=notify,
        credentials=Credentials.of_environment(server.ca),
    ) as connection:
        yield ServedModel(connection)
