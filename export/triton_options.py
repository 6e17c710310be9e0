"""Options of `mclst-export` that write a Triton repository, also from an existing bundle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mclst.runtime.atomic import check_apart, check_distinct, check_writable
from mclst.runtime.choices import PRECISIONS
from mclst.runtime.click_types import PATH, add_options, given_inputs, option_name
from mclst.runtime.console import check_json, publish_result, say, table

if TYPE_CHECKING:
    from mclst.export.triton.repository import Serving
    from mclst.runtime.bundle.bundle import Bundle

ALLOWED_WITH_BUNDLE = {
    "bundle_path", "triton", "triton_name", "triton_precision", "engine", "max_batch", "overwrite",
    "json_path", "quiet",
}  # fmt: skip
"""Parameters that apply to --bundle, which exports nothing."""


def _check_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from mclst.runtime.serving.server_manifest import NAME

    if not re.fullmatch(NAME, value):
        raise click.BadParameter(f"{value!r} is not a name of lowercase letters, digits, - and _")
    return value


triton_options = add_options(
    click.option(
        "--triton",
        type=PATH,
        metavar="REPO",
        help="Also write a model repository for NVIDIA Triton to this folder. It serves the engine of "
        "--engine tensorrt, else the graph on ONNX Runtime.",
    ),
    click.option("--bundle", "bundle_path", type=PATH, help="Existing bundle for --triton, without --ckpt."),
    click.option(
        "--triton-name",
        default="mclst",
        callback=_check_name,
        help="Name of the served model and prefix of its parts.",
    ),
    click.option(
        "--triton-precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        help="Precision of the served encoder.",
    ),
)


def parse_serving(triton: Path | None, options: Mapping[str, Any]) -> Serving:
    """Read how to serve the bundle; raises UsageError if options contradict."""
    from mclst.export.triton.repository import Serving

    context = click.get_current_context()
    explicit = {name for name in context.params if _is_explicit(context, name)}
    for name in ("bundle_path", "triton_name", "triton_precision"):
        if triton is None and name in explicit:
            raise click.UsageError(f"{option_name(context, name)} belongs to --triton")
    engine = options["engine"]
    if "bundle_path" in explicit:
        for name in sorted(explicit - ALLOWED_WITH_BUNDLE):
            raise click.UsageError(
                f"{option_name(context, name)} is of an export and --bundle exports nothing; "
                "leave one of them out"
            )
        if engine == "tensorrt-rtx":
            raise click.UsageError("Triton has no backend for tensorrt-rtx; choose --engine tensorrt or none")
    return Serving(
        options["triton_name"], options["triton_precision"], options["max_batch"], engine == "tensorrt"
    )


def _is_explicit(context: click.Context, name: str) -> bool:
    defaults = (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return context.get_parameter_source(name) not in defaults


def check_repository(
    triton: Path | None, overwrite: bool, inputs: tuple[Path | None, ...], bundle: Path
) -> None:
    """Raise OutputError before any work if the repository cannot be written or would replace an input."""
    if triton is None:
        return
    check_apart(triton, bundle, option="--triton")
    check_writable(triton, overwrite=overwrite, folder=True, option="--triton")
    check_distinct((triton,), inputs)


def publish_repository(
    bundle: Bundle, triton: Path, serving: Serving, *, overwrite: bool, quiet: bool
) -> None:
    """Write the repository and print a summary; raises as `write_repository` does."""
    from mclst.export.triton.repository import write_repository

    write_repository(bundle, triton, serving, overwrite=overwrite, say=lambda text: say(text, quiet=quiet))
    backend = "TensorRT's engine" if serving.tensorrt else "ONNX Runtime"
    model = f"{serving.name}, {serving.precision} by {backend}, up to {serving.max_batch} tiles at once"
    table([("repository", triton), ("model", model)], quiet=quiet)


def repository_of_bundle(
    path: Path, triton: Path, serving: Serving, *, overwrite: bool, json_path: Path | None, quiet: bool
) -> None:
    """Run `mclst-export --bundle DIR --triton REPO`; raises BundleError and as `write_repository` does."""
    from mclst.runtime.bundle.bundle import open_bundle

    inputs = tuple(given_inputs())
    check_json(json_path, overwrite=overwrite, inputs=inputs, outputs=(triton,))
    check_repository(triton, overwrite, inputs, path)
    bundle = open_bundle(path)
    publish_repository(bundle, triton, serving, overwrite=overwrite, quiet=quiet)
    publish_result(json_path, lambda: {"bundle": str(bundle.path), "triton": str(triton)}, triton)
