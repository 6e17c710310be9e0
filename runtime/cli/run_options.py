"""The options of mclst-infer that become `RunOptions`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from mclst.runtime.choices import PRECISIONS, PROVIDERS, RETRIEVERS
from mclst.runtime.cli.bundle_options import retrieval_options
from mclst.runtime.cli.report_options import FILE_OPTIONS, split_names, take_files
from mclst.runtime.click_types import Bytes, Finite, add_options
from mclst.runtime.resources import check_limit
from mclst.runtime.run.options import RETRIEVAL_OPTIONS, RunOptions, most_bad_tiles


def _bad_tiles(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        most_bad_tiles(value, 1)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--provider",
        type=click.Choice(PROVIDERS),
        default="auto",
        help="Runtime of the encoder; auto takes the fastest measured here, in fp32 the first available.",
    ),
    click.option(
        "--build/--no-build",
        default=True,
        help="Build a missing TensorRT engine for this GPU and keep it in the bundle.",
    ),
    click.option(
        "--precision",
        type=click.Choice(("auto", *PRECISIONS)),
        default="auto",
        help="Precision of the encoder; auto takes, of those in the bundle, the fastest measured here; fp32 "
        "gives the checkpoint's digits.",
    ),
    click.option(
        "--retriever",
        type=click.Choice(("auto", *RETRIEVERS)),
        default="auto",
        help="Implementation of the retrieval; auto takes a GPU that passes a self-test, else the CPU.",
    ),
    retrieval_options(),
    click.option(
        "--batch-size",
        type=click.IntRange(1, 4096),
        default=16,
        help="Most tiles encoded at once; fewer on a CPU where they would take over 5 s.",
    ),
    click.option(
        "--memory-budget",
        type=Bytes(),
        help="Memory to stay within, such as 4GB: sets batch (up to --batch-size), ring and bank precision.",
    ),
    click.option(
        "--cache/--no-cache",
        default=True,
        help="Keep embeddings in the user's cache, and use kept ones: another k, weighting, bank or list of "
        "genes on the same slide then takes seconds.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1, 256),
        default=min(8, os.cpu_count() or 2),
        help="Reading threads.",
    ),
    click.option(
        "--mpp", type=Finite(0.05, 10), help="µm/px of level 0; overrides the slide and the spots' array."
    ),
    click.option(
        "--max-bad-tiles",
        default="1%",
        metavar="N|N%",
        callback=_bad_tiles,
        help="Unreadable tiles tolerated (their rows are NaN): a count or a share.",
    ),
    click.option("--any-stain", is_flag=True, help="Predict a slide that is not stained with H&E, too."),
    click.option(
        "--intervals",
        type=click.Choice(("80", "90")),
        callback=lambda ctx, param, value: value and int(value),
        help="Add layers low and high, which hold this percent of the measured values.",
    ),
    click.option(
        "--reliable",
        type=Finite(-1, 1),
        metavar="R",
        help="Write only genes that reach this Pearson r in 9 of 10 new sections, such as 0.3.",
    ),
    click.option(
        "--outside-level",
        type=Finite(0, 1, min_open=True, max_open=True),
        default=0.95,
        help="A spot is outside if it is farther from the training's than this share of calibrated ones.",
    ),
    click.option(
        "--max-outside",
        metavar="N|N%",
        callback=lambda ctx, param, value: value and _bad_tiles(ctx, param, value),
        help="Refuse a slide with more spots outside, before its map appears.  [default: any]",
    ),
    click.option(
        "--genes",
        metavar="A,B,…",
        callback=lambda ctx, param, value: split_names(value),
        help="Genes of --grid to write as a pyramidal OME-TIFF.",
    ),
    click.option("--picture/--no-picture", default=True, help="Draw the most spatially structured genes."),
    *FILE_OPTIONS.values(),
    click.option("--report/--no-report", default=True, help="Write a report of the run, .run.json."),
    click.option(
        "--resume/--no-resume", default=True, help="Resume a stopped run of the same inputs and options."
    ),
    click.option("--overwrite", is_flag=True, help="Replace an existing map."),
)


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add these options to a click callback, which gets them as `options`, a RunOptions."""
    names = [field.name for field in fields(RunOptions) if field.name not in ("retrieval", "files")]

    @functools.wraps(function)
    def wrapped(**values: Any) -> Any:
        # Before heavy imports, which fail with a worse message under such a limit.
        check_limit()
        # In the order of the command line, which the identity of a cohort's maps has always had.
        overrides = {name: values.pop(name) for name in [*values] if name in RETRIEVAL_OPTIONS}
        options = RunOptions(
            retrieval={name: value for name, value in overrides.items() if value is not None},
            files=take_files(values),
            **{name: values.pop(name) for name in names},
        )
        return function(options=options, **values)

    return add_options(*OPTIONS)(wrapped)
