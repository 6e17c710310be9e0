"""The options about files made from a map, shared by mclst-infer and mclst-report."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mclst.runtime.choices import FIGURE_FORMATS
from mclst.runtime.click_types import add_options, refuse_unowned

if TYPE_CHECKING:
    from mclst.runtime.report.files import Files


def split_names(value: str | None) -> tuple[str, ...]:
    """Split `A,B` and strip blanks."""
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


def _genes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    genes = tuple(dict.fromkeys(split_names(value)))
    if value is not None and not genes:
        raise click.BadParameter("name one gene or more, with commas between them")
    return genes


FILE_OPTIONS = {
    "html": click.option(
        "--html/--no-html", default=None, help="Write a viewer page for any browser.  [default: on]"
    ),
    "html_px": click.option(
        "--html-px",
        type=click.IntRange(100, 16_000),
        default=4000,
        help="Longest side of the page's tissue image, if the slide is available.",
    ),
    "html_mb": click.option(
        "--html-mb",
        type=click.FloatRange(0, 1000),
        default=20.0,
        help="Size limit of the page in MB; the last genes of its list are left out above it.",
    ),
    "geojson": click.option("--geojson", is_flag=True, help="Write spots as QuPath detections."),
    "geojson_genes": click.option(
        "--geojson-genes",
        metavar="A,B,…",
        callback=_genes,
        help="Genes measured in the GeoJSON.  [default: the first 50 of the page]",
    ),
    "spatialdata": click.option("--spatialdata", is_flag=True, help="Write a SpatialData zarr store."),
    "plot": click.option(
        "--plot", metavar="A,B,…", callback=_genes, help="Draw a figure of these genes for print."
    ),
    "plot_format": click.option(
        "--plot-format",
        type=click.Choice(FIGURE_FORMATS),
        default="png",
        help="Format of the figure; PNG has 300 dpi.",
    ),
    "seurat": click.option(
        "--seurat", is_flag=True, help="Write a folder that Seurat's Load10X_Spatial opens, and scanpy."
    ),
    "csv": click.option("--csv", is_flag=True, help="Write all values as CSV, a row per spot."),
    "csv_escape": click.option(
        "--csv-escape",
        is_flag=True,
        help="Prefix names in the CSV that a spreadsheet takes for formulas with '.",
    ),
    "parquet": click.option("--parquet", is_flag=True, help="Write all values as Parquet."),
}
"""Field of Files → its option."""


def take_files(values: dict[str, Any]) -> Files:
    """Take the file options out of a callback's values; click.UsageError for one that would be ignored."""
    from mclst.runtime.report.files import Files

    files = Files(**{name: values.pop(name) for name in FILE_OPTIONS})
    if not files.geojson:
        refuse_unowned("--geojson", "geojson_genes")
    if not files.plot:
        refuse_unowned("--plot", "plot_format")
    if not files.csv:
        refuse_unowned("--csv", "csv_escape")
    if files.html is False:
        refuse_unowned("the page, which --no-html leaves out", "html_px", "html_mb")
    return files


def file_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add these options to a click callback, which gets them as `files`, a Files."""

    @functools.wraps(function)
    def wrapped(**values: Any) -> Any:
        return function(files=take_files(values), **values)

    return add_options(*FILE_OPTIONS.values())(wrapped)
