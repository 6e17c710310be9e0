"""`mclst-report`: a finished map → a page, figures, tables, files for QuPath and SpatialData."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from mclst.runtime.atomic import check_apart
from mclst.runtime.cli.report_options import file_options
from mclst.runtime.console import check_json, command, publish_json, table
from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.measured import measured_for
from mclst.runtime.expression_map.reader import Map, open_map
from mclst.runtime.report.files import Files, check_places, write_files
from mclst.runtime.report.page.slide_page import Picture
from mclst.runtime.slide.open import open_slide
from mclst.sections.normalize import NORMALIZATIONS

PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("map_path", metavar="MAP", type=PATH)
@file_options
@click.option("--truth", type=PATH, help="Measured sections, to show measured beside predicted.")
@click.option("--section", help="Section of the truth that the map is of.  [default: by the map's name]")
@click.option(
    "--normalisation",
    type=click.Choice(tuple(NORMALIZATIONS)),
    help="Of the truth, where the map does not say how its own expression is normalised.",
)
@click.option("--slide", "slide_path", type=PATH, help="The map's slide, for a finer picture of the tissue.")
@click.option("--out", type=PATH, help="Start of the files' names.  [default: MAP's, beside it]")
@click.option("--overwrite", is_flag=True, help="Replace files of those names.")
@click.option("--json", "json_path", type=PATH, help="Write what was written as JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.version_option(package_name="mclst")
@command
def main(
    map_path: Path,
    files: Files,
    truth: Path | None,
    section: str | None,
    normalisation: str | None,
    slide_path: Path | None,
    out: Path | None,
    overwrite: bool,
    json_path: Path | None,
    quiet: bool,
) -> None:
    """Make a page from a MAP of mclst-infer, or from any .h5ad with its spots and one tissue image; other files too.

    The page is one file that opens offline in any browser. The path of each file made is printed on stdout.
    """
    if truth is None and (section is not None or normalisation is not None):
        raise click.UsageError("--section and --normalisation belong to --truth")
    for option, given in (("--truth", truth), ("--slide", slide_path)):
        if given is not None and files.html is False:
            raise click.UsageError(f"{option} is for the page, which --no-html leaves out")
    files, _ = replace(files, html=files.html is not False).ready()
    places = files.beside(map_path if out is None else out.with_name(f"{out.name}.h5ad"))
    if not places:
        raise click.UsageError("nothing is asked for; leave --no-html out, or ask for another file")
    check_json(json_path, overwrite=overwrite, inputs=(map_path, truth, slide_path), outputs=places.values())
    check_apart(places.values(), (map_path, truth, slide_path))
    with open_map(map_path) as found:
        files.check_genes(found.genes)
        check_places(places, overwrite=overwrite)
        measured = None if truth is None else measured_for(found, truth, section, normalisation)
        picture = None if slide_path is None else _picture(found, slide_path, files.html_px)
        write_files(found, files, places, overwrite=overwrite, measured=measured, picture=picture)
        genes = ", ".join(f"{found.genes[g]} ({found.morans_i[g]:.2f})" for g in found.order[:5])
        rows = [("spots", f"{len(found.xy_px):,}"), ("structured", f"{genes} (Moran's I)")]
    table([*rows, *((kind, place) for kind, place in places.items())], quiet=quiet)
    if json_path is not None:
        publish_json(
            json_path, {"map": str(map_path), "files": {kind: str(place) for kind, place in places.items()}}
        )
    if json_path is None or str(json_path) != "-":
        for place in places.values():
            click.echo(str(place))


def _picture(found: Map, slide_path: Path, longest_px: int) -> Picture:
    """The slide as a whole, if it is the map's; InputError where its size or shape is another's."""
    with open_slide(slide_path) as slide:
        size = (slide.width_px, slide.height_px)
        told = found.told.get("slide", {})
        height, width = (side / found.image_scale for side in found.image.shape[:2])
        # The map's own image may be a pixel off its slide's shape.
        room = 2 / found.image_scale
        fits = abs(size[0] - width) <= room and abs(size[1] - height) <= room
        if not fits or size != (told.get("width_px", size[0]), told.get("height_px", size[1])):
            raise InputError(
                f"{slide_path} is {size[0]} x {size[1]} px, and the map is of a slide of about {width:.0f} x {height:.0f} px; "
                "give the slide it was made from"
            )
        return slide.thumbnail(longest_px)


if __name__ == "__main__":
    sys.exit(main())
