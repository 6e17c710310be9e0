"""The options of `mclst-export` that make a server's repository, and the way there from a bundle that exists."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from mclst.runtime.atomic import check_apart, check_writable
from mclst.runtime.bundle.bundle import PRECISIONS, Bundle, open_bundle
from mclst.runtime.console import check_json, publish_json, say, table
from mclst.runtime.errors import OutputError

if TYPE_CHECKING:
    from mclst.export.triton.repository import Serving

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
NAME = "mclst"

WITH_A_BUNDLE = {
    "bundle_path", "triton", "triton_name", "triton_precision", "engine", "max_batch", "overwrite", "json_path", "quiet",
}  # fmt: skip
"""Options that mean something where nothing is exported."""


def _name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from mclst.runtime.serving.server_manifest import NAME as PATTERN

    if not re.fullmatch(PATTERN, value):
        raise click.BadParameter(f"{value!r} is not a name of small letters, digits, - and _")
    return value


def serving_options(function: F) -> F:
    """Add the options to a click command."""
    for option in reversed(
        (
            click.option(
                "--triton",
                type=PATH,
                metavar="REPO",
                help="Also write a model repository for NVIDIA Triton to this folder: tiles in, expression out. With "
                "--engine tensorrt it serves that engine, else the graph by ONNX Runtime.",
            ),
            click.option(
                "--bundle",
                "bundle_path",
                type=PATH,
                help="With --triton and without --ckpt: a bundle that is there.",
            ),
            click.option(
                "--triton-name",
                default=NAME,
                callback=_name,
                help="The model that clients ask for; the others' names begin with it.",
            ),
            click.option(
                "--triton-precision",
                type=click.Choice(PRECISIONS),
                default="fp32",
                help="Of the encoder it serves.",
            ),
        )
    ):
        function = option(function)
    return function


def serving(triton: Path | None, options: Mapping[str, Any], max_batch: int, engine: str) -> Serving:
    """How the bundle is to be served; raises UsageError where options contradict each other."""
    from mclst.export.triton.repository import Serving

    context = click.get_current_context()
    given = {name for name in context.params if _given(context, name)}
    for name in ("bundle_path", "triton_name", "triton_precision"):
        if triton is None and name in given:
            raise click.UsageError(f"{_spelling(context, name)} belongs to --triton")
    if "bundle_path" in given:
        for name in sorted(given - WITH_A_BUNDLE):
            raise click.UsageError(
                f"{_spelling(context, name)} is of an export and --bundle exports nothing; leave one of them out"
            )
        if engine == "tensorrt-rtx":
            raise click.UsageError("Triton has no backend for tensorrt-rtx; choose --engine tensorrt or none")
    return Serving(options["triton_name"], options["triton_precision"], max_batch, engine == "tensorrt")


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) not in (
        None,
        ParameterSource.DEFAULT,
        ParameterSource.DEFAULT_MAP,
    )


def _spelling(context: click.Context, name: str) -> str:
    return next(param.opts[0] for param in context.command.params if param.name == name)


def check_repository(
    triton: Path | None, overwrite: bool, inputs: tuple[Path | None, ...], bundle: Path
) -> None:
    """Refuse the place of a repository before any work: an output's usual faults, an input, the bundle."""
    if triton is None:
        return
    place = triton.resolve()
    if bundle.resolve() in (place, *place.parents):
        raise OutputError(f"{triton} is, or lies in, the bundle {bundle}; choose another --triton")
    check_writable(triton, overwrite=overwrite, folder=True, option="--triton")
    check_apart((triton,), inputs)


def serve(bundle: Bundle, triton: Path, how: Serving, *, overwrite: bool, quiet: bool) -> None:
    """Write the repository and say what stands in it; raises as `write_repository` does."""
    from mclst.export.triton.repository import write_repository

    write_repository(bundle, triton, how, overwrite=overwrite, say=lambda text: say(text, quiet=quiet))
    backend = "TensorRT's engine" if how.tensorrt else "ONNX Runtime"
    table(
        [
            ("repository", triton),
            ("model", f"{how.name}, {how.precision} by {backend}, up to {how.max_batch} tiles at once"),
        ],
        quiet=quiet,
    )


def serve_bundle(
    path: Path, triton: Path, how: Serving, *, overwrite: bool, json_path: Path | None, quiet: bool
) -> None:
    """`mclst-export --bundle DIR --triton REPO`; raises BundleError and as `serve` does."""
    check_json(json_path, overwrite=overwrite, inputs=(path,), outputs=(triton,))
    check_repository(triton, overwrite, (), path)
    bundle = open_bundle(path)
    serve(bundle, triton, how, overwrite=overwrite, quiet=quiet)
    if json_path is not None:
        publish_json(json_path, {"bundle": str(bundle.path), "triton": str(triton)})
    if json_path is None or str(json_path) != "-":
        click.echo(str(triton))
