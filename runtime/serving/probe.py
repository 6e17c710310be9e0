"""Health check of a server: one gray tile through all its models. `python -m mclst.runtime.serving.probe`.

Triton reports ready even if a process of its Python backend is dead, so only an inference shows its health.
The request uses the standard library alone, since this runs inside the server's container.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from math import isfinite
from typing import Any

import click

from mclst.runtime.click_types import SETTINGS
from mclst.runtime.console import command, say
from mclst.runtime.errors import ResourceError
from mclst.runtime.serving.client import Address
from mclst.runtime.serving.server_manifest import (
    ASK,
    EXPRESSION,
    MANIFEST,
    MAX_ANSWER_BYTES,
    TILES,
    Served,
    inner_model,
    read_served,
)

GRAY = 200
JSON_LENGTH = "Inference-Header-Content-Length"
"""Header with the length of a request's JSON, before the tensors' bytes: the binary tensor data extension."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *request: Any) -> None:
        """Make a redirect an HTTPError."""


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
"""Requests go to the named server alone: no redirects, no proxy of the environment."""


class Busy(Exception):
    """The server is up, but its queue is full."""


def probe(url: str, name: str, seconds: float) -> Served:
    """Request a server's manifest and the expression of one tile.

    Parameters
    ----------
    url : str
        `http://host:port`.
    name : str
        Of the model.
    seconds : float
        Time limit of each answer.

    Returns
    -------
    Served

    Raises
    ------
    ResourceError
        If there is no answer, or no finite expression of all genes.
    InputError
        If the manifest is invalid.
    Busy
    """
    ask = {"name": ASK, "shape": [1], "datatype": "INT32", "data": [0]}
    answer = _infer(url, inner_model(name, "manifest"), {"inputs": [ask]}, b"", seconds)
    served = read_served(str(_values(answer, MANIFEST)[0]).encode(), url)
    size_px = served.bundle.manifest.tile.size_px
    tile = bytes([GRAY]) * (size_px * size_px * 3)
    tensor = {
        "name": TILES,
        "shape": [1, size_px, size_px, 3],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": len(tile)},
    }
    expression = _values(_infer(url, name, {"inputs": [tensor]}, tile, seconds), EXPRESSION)
    if len(expression) != len(served.genes) or not all(
        isinstance(value, float) and isfinite(value) for value in expression
    ):
        raise ResourceError(
            f"{url} gives {name} no finite expression of {len(served.genes)} genes; restart it"
        )
    return served


def _infer(url: str, model: str, content: dict[str, Any], tensors: bytes, seconds: float) -> Any:
    header = json.dumps(content).encode()
    try:
        request = urllib.request.Request(
            f"{url.rstrip('/')}/v2/models/{model}/infer",
            header + tensors,
            {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(header))},
        )
        with OPENER.open(request, timeout=seconds) as answer:
            body = answer.read(MAX_ANSWER_BYTES + 1)
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"its answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
        return json.loads(body, parse_int=float)
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            reason = error.read(300).decode(errors="replace")
        if error.code == 503:
            raise Busy from error
        raise ResourceError(f"{url} answers {model} with {error.code} ({reason}); restart it") from error
    except (OSError, ValueError, HTTPException, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ResourceError(f"{url} does not answer {model} ({reason}); restart it") from error


def _values(answer: Any, name: str) -> list[Any]:
    """Return an output's values; [""] if the answer has another form."""
    outputs = answer.get("outputs") if isinstance(answer, dict) else None
    for output in outputs if isinstance(outputs, list) else []:
        if isinstance(output, dict) and output.get("name") == name:
            values = output.get("data")
            return values if isinstance(values, list) and values else [""]
    return [""]


@click.command(context_settings=SETTINGS)
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--server-model", default="mclst", help="Model on the server.")
@click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=120.0, help="Time limit of each answer in seconds."
)
@command
def main(url: str, server_model: str, timeout: float) -> None:
    """Exit with 0 if the server at URL predicts the expression of a tile, else with 6.

    With 4 if what it says of itself is invalid. A full queue, 503, counts as healthy.
    """
    try:
        address = Address.of(url)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if address.protocol not in ("http", "https"):
        raise click.UsageError(f"{url!r} is no http:// or https:// address")
    try:
        served = probe(url, server_model, timeout)
    except Busy:
        say(f"{url} is up, but its queue is full")
        return
    say(f"{url} gives {server_model}: {len(served.genes)} genes of bundle {served.bundle.sha256[:16]}")


if __name__ == "__main__":
    sys.exit(main())
