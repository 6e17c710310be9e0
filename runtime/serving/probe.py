"""Whether a server still gives expression: one gray tile through all its models. `python -m mclst.runtime.serving.probe`.

Triton calls itself ready while a process of its Python backend is dead, so only an inference tells. Standard library
alone: this runs inside the server's container.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from math import isfinite
from typing import Any

import click

from mclst.runtime.console import command, say
from mclst.runtime.errors import ResourceError
from mclst.runtime.serving.server_manifest import (
    ASK,
    EXPRESSION,
    MANIFEST,
    TILES,
    Served,
    inner_model,
    read_served,
)

GRAY = 200
JSON_LENGTH = "Inference-Header-Content-Length"
"""Where the JSON of a request ends and the bytes of its tensors begin: the binary tensor data extension."""


class Busy(Exception):
    """The server turned the request away for the number of those that wait: it lives."""


def probe(url: str, name: str, seconds: float) -> Served:
    """Ask the server at `url` (http://host:port) for its manifest, and for the expression of one tile.

    seconds: patience with each answer. Raises ResourceError where one does not come or is no finite expression of all
    genes, InputError where the manifest is not one; Busy.
    """
    ask = {"name": ASK, "shape": [1], "datatype": "INT32", "data": [0]}
    answer = _infer(url, inner_model(name, "manifest"), {"inputs": [ask]}, b"", seconds)
    served = read_served(str(_values(answer, MANIFEST)[0]).encode(), url)
    size_px = served.bundle.manifest.tile.size_px
    tile = bytes([GRAY]) * (size_px * size_px * 3)
    given = {
        "name": TILES,
        "shape": [1, size_px, size_px, 3],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": len(tile)},
    }
    found = _values(_infer(url, name, {"inputs": [given]}, tile, seconds), EXPRESSION)
    if len(found) != len(served.genes) or not all(
        isinstance(value, float | int) and isfinite(value) for value in found
    ):
        raise ResourceError(
            f"{url} gives {name} no finite expression of {len(served.genes)} genes; restart it"
        )
    return served


def _infer(url: str, model: str, asked: dict[str, Any], tensors: bytes, seconds: float) -> Any:
    header = json.dumps(asked).encode()
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v2/models/{model}/infer",
        header + tensors,
        {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(header))},
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 503:
            raise Busy from error
        reason = error.read(300).decode(errors="replace")
        raise ResourceError(f"{url} answers {model} with {error.code} ({reason}); restart it") from error
    except (OSError, ValueError) as error:
        raise ResourceError(f"{url} does not answer {model} ({error}); restart it") from error


def _values(answer: Any, name: str) -> list[Any]:
    """The values of an output, or none where the answer has another form."""
    outputs = answer.get("outputs", []) if isinstance(answer, dict) else []
    found = [output.get("data") for output in outputs if output.get("name") == name]
    return found[0] if found and isinstance(found[0], list) and found[0] else [""]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--server-model", default="mclst", help="The model to ask.")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=120.0, help="Seconds for each answer.")
@command
def main(url: str, server_model: str, timeout: float) -> None:
    """Leave with 0 where the server at URL gives the expression of a tile, else with a sentence and 6.

    A server whose queue is full answers 503, and is as it should be.
    """
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"{url!r} is no http:// or https:// address")
    try:
        served = probe(url, server_model, timeout)
    except Busy:
        say(f"{url} is up, and has no room for one more request now")
        return
    say(f"{url} gives {server_model}: {len(served.genes)} genes of bundle {served.bundle.sha256[:16]}")


if __name__ == "__main__":
    sys.exit(main())
