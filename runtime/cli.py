"""`mclst-infer`: options → predict → exit status."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import click

from mclst.kernels.spec import DISTANCES, RANKS, WEIGHTINGS, RetrievalSpec
from mclst.runtime.bundle import Bundle, open_bundle
from mclst.runtime.command import check_json, command, progress, publish_json, say, table
from mclst.runtime.pipeline import Run, predict
from mclst.runtime.session import PROVIDERS
from mclst.runtime.slide import READERS, open_slide
from mclst.sections.spots import read_spots

PATH = click.Path(path_type=Path)
NAMED_FAILURES = 5


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("slide", type=PATH)
@click.option(
    "--spots",
    "spots_path",
    required=True,
    type=PATH,
    help="Where to predict: a table of spots (Space Ranger, legacy ST, or id,x,y in level-0 pixels).",
)
@click.option(
    "--bundle",
    "bundle_path",
    type=PATH,
    default=Path("mclst-bundle"),
    envvar="MCLST_BUNDLE",
    show_envvar=True,
    help="Bundle of mclst-export.",
)
@click.option(
    "--out", type=PATH, help="The map to write.  [default: SLIDE's name with .h5ad, in the working folder]"
)
@click.option("--provider", type=click.Choice(PROVIDERS), default="auto", help="What runs the encoder.")
@click.option("--k", type=click.IntRange(1), help="Neighbours averaged per tile.  [default: the bundle's]")
@click.option(
    "--rank", type=click.Choice(RANKS), help="What chooses the neighbours.  [default: the bundle's]"
)
@click.option(
    "--distance", type=click.Choice(DISTANCES), help="What the weights are made of.  [default: the bundle's]"
)
@click.option(
    "--weighting", type=click.Choice(WEIGHTINGS), help="Distance to weight.  [default: the bundle's]"
)
@click.option("--temperature", type=float, help="Of the softmax weightings.  [default: the bundle's]")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=16, help="Tiles encoded at once.")
@click.option(
    "--workers", type=click.IntRange(1, 256), default=min(8, os.cpu_count() or 2), help="Reading threads."
)
@click.option(
    "--mpp", type=click.FloatRange(0.05, 10), help="µm/px of level 0, where the slide does not say."
)
@click.option("--reader", type=click.Choice(READERS), default="auto", help="What decodes the slide.")
@click.option(
    "--all-spots", is_flag=True, help="Also spots the table marks as not in tissue or not selected."
)
@click.option(
    "--picture/--no-picture", default=True, help="Draw the most spatially structured genes beside the map."
)
@click.option("--overwrite", is_flag=True, help="Replace a map of that name.")
@click.option("--json", "json_path", type=PATH, help="Write the summary as JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Name every spot whose tile could not be read.")
@click.version_option(package_name="mclst")
@command
def main(
    slide: Path,
    spots_path: Path,
    bundle_path: Path,
    out: Path | None,
    provider: str,
    batch_size: int,
    workers: int,
    mpp: float | None,
    reader: str,
    all_spots: bool,
    picture: bool,
    overwrite: bool,
    json_path: Path | None,
    quiet: bool,
    verbose: bool,
    **retrieval: Any,
) -> None:
    """Predict gene expression at the spots of a SLIDE and write it as a map.

    The .h5ad opens in scanpy and squidpy as it is; its path is printed on stdout. A picture of the most spatially
    structured genes stands beside it.
    """
    check_json(json_path, overwrite=overwrite)
    bundle = open_bundle(bundle_path)
    spots = read_spots(spots_path, all_spots=all_spots)
    with (
        open_slide(slide, reader=reader) as opened,
        progress("tiles", len(spots), quiet=quiet) as advance,
    ):
        run = predict(
            bundle,
            opened,
            spots,
            out,
            provider=provider,
            retrieval=_spec(bundle, retrieval),
            batch_size=batch_size,
            workers=workers,
            slide_mpp=mpp,
            overwrite=overwrite,
            picture=picture,
            advance=advance,
        )
    table(_summary(run, bundle), quiet=quiet)
    _say_failures(run, quiet=quiet, verbose=verbose)
    if json_path is not None:
        publish_json(json_path, run.as_json())
    if json_path is None or str(json_path) != "-":
        click.echo(str(run.map_path))


def _spec(bundle: Bundle, given: dict[str, Any]) -> RetrievalSpec:
    changed = {name: value for name, value in given.items() if value is not None}
    try:
        return dataclasses.replace(bundle.manifest.retrieval.spec(), **changed)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _summary(run: Run, bundle: Bundle) -> list[tuple[str, Any]]:
    rate = {stage: f"{run.tiles_per_second(stage):,.0f}" for stage in ("read", "encode", "retrieve", "total")}
    genes = ", ".join(f"{gene} ({value:.2f})" for gene, value in run.structured[:5])
    rows: list[tuple[str, Any]] = [
        ("spots", f"{run.spots:,}, {run.coordinates}"),
        ("genes", f"{run.genes:,}, normalised {bundle.manifest.normalisation.expression}"),
        ("tiles", run.tile),
        (
            "tiles/s",
            "read {read}, encode {encode}, retrieve {retrieve}; whole run {total}".format(**rate),
        ),
        ("provider", f"{run.provider}, retrieval {run.retriever}"),
    ]
    if genes:
        rows.append(("structured", f"{genes} (Moran's I)"))
    rows.append(("map", run.map_path))
    if run.picture_path is not None:
        rows.append(("picture", run.picture_path))
    return rows


def _say_failures(run: Run, *, quiet: bool, verbose: bool) -> None:
    for note in run.notes:
        say(f"Note: {note}", quiet=quiet)
    if not run.failed:
        return
    say(f"Warning: {len(run.failed)} of {run.spots} tiles could not be read; their rows are NaN:")
    shown = run.failed if verbose else run.failed[:NAMED_FAILURES]
    table((spot, reason) for spot, reason in shown)
    if len(shown) < len(run.failed):
        say(f"  and {len(run.failed) - len(shown)} more; -v names them all")


if __name__ == "__main__":
    sys.exit(main())
