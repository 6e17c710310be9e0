"""`mclst-report`: a finished map → a page, figures, tables, files for QuPath and SpatialData."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mclst.runtime.cli.report_options import file_options
from mclst.runtime.cli.slide_argument import SlideArgument
from mclst.runtime.cli.structured import LISTED, structured_rows
from mclst.runtime.click_types import PATH, SETTINGS, AliasedOption, given_inputs, refuse_unowned
from mclst.runtime.console import check_json, command, publish_result, say, table
from mclst.runtime.errors import InputError
from mclst.runtime.section_options import BINS
from mclst.sections.location import SlideLocation
from mclst.sections.normalization_names import NORMALIZATION_NAMES

if TYPE_CHECKING:
    from mclst.runtime.expression_map.reader import Map
    from mclst.runtime.report.files import Files
    from mclst.runtime.report.page.tissue import TissueJpeg


@click.command(context_settings=SETTINGS)
@command
@click.argument("map_path", metavar="MAP", type=PATH)
@file_options
@click.option("--truth", type=PATH, help="Measured sections, to compare measured and predicted expression.")
@click.option("--section", help="Section of --truth that the map predicts.  [default: by the map's name]")
@click.option(
    "--normalization",
    cls=AliasedOption,
    aliases=("--normalisation",),
    type=click.Choice(NORMALIZATION_NAMES),
    help="Normalization of --truth, if the map does not name its own.",
)
@BINS
@click.option(
    "--cells",
    type=PATH,
    help="GeoJSON cells that the map's spots came from: --geojson then has their own outlines.",
)
@click.option(
    "--slide",
    "slide_path",
    type=SlideArgument(),
    help="The map's slide, a path or an address, for a sharper tissue image.",
)
@click.option("--out", type=PATH, help="Prefix of the files' names.  [default: MAP's]")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option("--json", "json_path", type=PATH, help="Write the list of files as JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.version_option(package_name="mclst")
def main(
    map_path: Path,
    files: Files,
    truth: Path | None,
    section: str | None,
    normalization: str | None,
    bins: str | None,
    cells: Path | None,
    slide_path: SlideLocation | None,
    out: Path | None,
    overwrite: bool,
    json_path: Path | None,
    quiet: bool,
) -> None:
    """Make a viewer page and other files from a MAP of mclst-infer.

    Any .h5ad with spots and one tissue image will do.
    The page is a single file that opens offline in any browser. The path of each file is printed on stdout.
    """
    from mclst.runtime.atomic import check_distinct, check_named
    from mclst.runtime.expression_map.reader import open_map
    from mclst.runtime.report.files import check_paths, write_files

    if truth is None:
        refuse_unowned("--truth", "section", "normalization", "bins")
    if slide_path is None:
        refuse_unowned("--slide", "html_px")
    for option, value in (("--truth", truth), ("--slide", slide_path)):
        if value is not None and files.html is False:
            raise click.UsageError(f"{option} is for the page, which --no-html leaves out")
    if not os.path.isfile(map_path):
        raise InputError(f"{map_path} is not a file; give a map of mclst-infer")
    if out is not None:
        check_named(out)
    files, _ = replace(files, html=files.html is not False).resolve()
    paths = files.paths(map_path if out is None else out.with_name(f"{out.name}.h5ad"))
    if not paths:
        raise click.UsageError("nothing to write; leave --no-html out, or choose another file")
    inputs = given_inputs()
    check_json(json_path, overwrite=overwrite, inputs=inputs, outputs=paths.values())
    check_distinct(paths.values(), inputs)
    if cells is not None and not files.geojson:
        raise click.UsageError("--cells belongs to --geojson")
    with open_map(map_path) as expression_map:
        files.check_genes(expression_map.genes)
        check_paths(paths, overwrite=overwrite)
        measured = None
        if truth is not None:
            from mclst.runtime.expression_map.measured import measured_expression

            measured = measured_expression(expression_map, truth, section, normalization, bins)
        tissue = None if slide_path is None else _tissue(expression_map, slide_path, files.html_px)
        notes = write_files(
            expression_map,
            files,
            paths,
            overwrite=overwrite,
            measured=measured,
            tissue=tissue,
            cells=cells,
        )
        rows = [
            ("spots", f"{len(expression_map.xy_px):,}"),
            *structured_rows(expression_map.structured(LISTED)),
        ]
    for note in notes:
        say(f"Note: {note}", quiet=quiet)
    table([*rows, *paths.items()], quiet=quiet)
    content = {"map": str(map_path), "files": {kind: str(path) for kind, path in paths.items()}}
    publish_result(json_path, lambda: content, *paths.values())


def _tissue(expression_map: Map, slide_path: SlideLocation, longest_px: int) -> TissueJpeg:
    """Return the whole slide's image; raise InputError if its size or shape is not the map's."""
    from mclst.runtime.report.page.tissue import encode_tissue
    from mclst.runtime.slide.open import open_slide

    with open_slide(slide_path, lazy=True) as slide:
        size = (slide.width_px, slide.height_px)
        recorded = expression_map.provenance.get("slide", {})
        height, width = (side / expression_map.image_scale for side in expression_map.image.shape[:2])
        # The map's own image may be a pixel off its slide's shape.
        tolerance = 2 / expression_map.image_scale
        fits = abs(size[0] - width) <= tolerance and abs(size[1] - height) <= tolerance
        if not fits or size != (recorded.get("width_px", size[0]), recorded.get("height_px", size[1])):
            raise InputError(
                f"{slide_path} is {size[0]} x {size[1]} px, and the map is of a slide of about {width:.0f} x "
                f"{height:.0f} px; give the slide it was made from"
            )
        slide.expect_overview(longest_px)
        slide.decode()
        return encode_tissue(*slide.overview(longest_px))


if __name__ == "__main__":
    sys.exit(main())
