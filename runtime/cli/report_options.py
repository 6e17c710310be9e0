"""The options that say what is written from a map, the same wherever a map is at hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from mclst.runtime.report.figures.layout import KINDS
from mclst.runtime.report.files import Files


def names(value: str | None) -> tuple[str, ...]:
    """`A,B` → its parts, without blanks."""
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


def _genes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(names(value)))
    if value is not None and not found:
        raise click.BadParameter("name one gene or more, with commas between them")
    return found


OPTIONS = (
    click.option("--html/--no-html", default=None, help="A page to look at in any browser.  [default: on]"),
    click.option(
        "--html-px",
        type=click.IntRange(100, 16_000),
        default=4000,
        help="Longest side of the tissue there, where the slide is at hand.",
    ),
    click.option(
        "--html-mb",
        type=click.FloatRange(0, 1000),
        default=3.5,
        help="MB of expression there, about: the more, the less the values of a large map are rounded.",
    ),
    click.option("--geojson", is_flag=True, help="Spots for QuPath, as detections with measurements."),
    click.option(
        "--geojson-genes",
        metavar="A,B,…",
        callback=_genes,
        help="Measured there.  [default: the 50 most structured]",
    ),
    click.option("--spatialdata", is_flag=True, help="A SpatialData zarr store."),
    click.option("--plot", metavar="A,B,…", callback=_genes, help="A figure of these genes, for print."),
    click.option(
        "--plot-format", type=click.Choice(KINDS), default="png", help="Of that figure; a PNG has 300 dpi."
    ),
    click.option("--csv", is_flag=True, help="All values as a table, a row per spot."),
    click.option("--parquet", is_flag=True, help="The same as Parquet."),
)


def file_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click callback these options, and hand it what they say as `files`, a Files."""

    @functools.wraps(function)
    def wrapped(**given: Any) -> Any:
        own = {name: given.pop(name) for name in Files.__dataclass_fields__}
        return function(files=Files(**own), **given)

    for option in reversed(OPTIONS):
        wrapped = option(wrapped)
    return wrapped
