"""`mclst-report`: a finished map → a page, figures, tables, files for QuPath and SpatialData."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.command import check_json, command, publish_json, table
from mclst.runtime.map_file import Map, open_map
from mclst.runtime.measured import Predicted, choose_section, pair_with_truth
from mclst.runtime.publish import check_apart
from mclst.runtime.report.files import Files, check_places, write_files
from mclst.runtime.report.options import file_options
from mclst.sections.normalise import NORMALISATIONS

PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("map_path", metavar="MAP", type=PATH)
@file_options
@click.option("--truth", type=PATH, help="Measured sections, to show measured beside predicted.")
@click.option("--section", help="Section of the truth that the map is of.  [default: by the map's name]")
@click.option(
    "--normalisation",
    type=click.Choice(tuple(NORMALISATIONS)),
    help="Of the truth, where the map does not say how its own expression is normalised.",
)
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
    if truth is not None and files.html is False:
        raise click.UsageError("--truth is for the page, which --no-html leaves out")
    files, _ = replace(files, html=files.html is not False).ready()
    places = files.beside(map_path if out is None else out.with_name(f"{out.name}.h5ad"))
    if not places:
        raise click.UsageError("nothing is asked for; leave --no-html out, or ask for another file")
    check_json(json_path, overwrite=overwrite, inputs=(map_path, truth), outputs=places.values())
    check_apart(places.values(), (map_path, truth))
    with open_map(map_path) as found:
        files.check_genes(found.genes)
        check_places(places, overwrite=overwrite)
        measured = None if truth is None else _measured(found, truth, section, normalisation)
        write_files(found, files, places, overwrite=overwrite, measured=measured)
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


def _measured(found: Map, truth: Path, section: str | None, normalisation: str | None) -> NDArray[np.float32]:
    """What was measured of a map's section, float32 [n, G] in the map's order, NaN where it was not."""
    predicted = Predicted(
        path=found.path,
        spot=np.array(found.spots),
        genes=np.array(found.genes),
        expression=np.asarray(found.expression[:], np.float64),
        xy_px=found.xy_px,
        slide=(found.title,),
        normalisation=found.told.get("bundle", {}).get("normalisation_expression"),
    )
    source = choose_section(predicted, truth, section)
    pair = pair_with_truth(predicted, source, normalisation=normalisation, common_genes=True)
    row = {name: i for i, name in enumerate(found.spots)}
    column = {gene: i for i, gene in enumerate(found.genes)}
    measured = np.full((len(row), len(column)), np.nan, np.float32)
    measured[np.ix_([row[str(name)] for name in pair.spot], [column[gene] for gene in pair.genes])] = (
        pair.truth
    )
    return measured


if __name__ == "__main__":
    sys.exit(main())
