"""Options of `mclst-export` that write a model for QuPath's WSInfer extension."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.runtime.atomic import check_apart, check_distinct, check_writable
from mclst.runtime.cli.report_options import split_names
from mclst.runtime.click_types import PATH, Finite, add_options

if TYPE_CHECKING:
    from mclst.runtime.bundle.bundle import Bundle

wsinfer_options = add_options(
    click.option(
        "--wsinfer",
        type=PATH,
        metavar="FOLDER",
        help="Also write a model for QuPath's WSInfer extension, whose classes are --wsinfer-genes.",
    ),
    click.option(
        "--wsinfer-genes",
        metavar="A,B,…",
        callback=lambda ctx, param, value: split_names(value),
        help="Genes of --wsinfer.",
    ),
    click.option(
        "--wsinfer-mpp",
        type=Finite(0.05, 10),
        help="µm/px of --wsinfer's tiles, if the bundle takes level-0 pixels.  [default: the bundle's]",
    ),
)


def check_wsinfer(
    options: Mapping[str, Any], overwrite: bool, inputs: tuple[Path | None, ...], bundle: Path
) -> None:
    """Raise UsageError if options contradict, OutputError if the folder cannot be written."""
    folder, genes = options["wsinfer"], options["wsinfer_genes"]
    if folder is None:
        if genes or options["wsinfer_mpp"] is not None:
            raise click.UsageError("--wsinfer-genes and --wsinfer-mpp belong to --wsinfer")
        return
    if not genes:
        raise click.UsageError("--wsinfer needs --wsinfer-genes, the genes to show as classes")
    check_apart(folder, bundle, option="--wsinfer")
    check_writable(folder, overwrite=overwrite, folder=True, option="--wsinfer")
    check_distinct((folder,), inputs)


def publish_wsinfer(
    bundle: Bundle,
    ckpt: Path,
    weights: Path | None,
    system: str | None,
    overrides: dict[str, Any],
    options: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Write the model; raises as `write_wsinfer` does."""
    from mclst.export.inputs.checkpoint import open_checkpoint
    from mclst.export.settings import resolve_settings
    from mclst.export.wsinfer import write_wsinfer

    checkpoint = open_checkpoint(ckpt, system, weights=weights)
    settings = resolve_settings(checkpoint, overrides)
    genes, mpp = options["wsinfer_genes"], options["wsinfer_mpp"]
    write_wsinfer(checkpoint, settings, bundle, options["wsinfer"], genes, mpp, overwrite=overwrite)
