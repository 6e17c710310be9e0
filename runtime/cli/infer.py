"""`mclst-infer`: options → predict → exit status."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import click

from mclst.kernels.retriever import PROVIDERS as RETRIEVERS
from mclst.runtime.bundle.bundle import PRECISIONS, Bundle
from mclst.runtime.cli.bundle_options import bundle_option, retrieval_options
from mclst.runtime.cli.cohort import CohortOptions, cohort_options, run_cohort
from mclst.runtime.cli.report_options import file_options, names
from mclst.runtime.cli.server_options import ServerOptions, ready, server_options
from mclst.runtime.console import (
    Bytes,
    Finite,
    check_json,
    command,
    progress,
    publish_json,
    say,
    table,
)
from mclst.runtime.inference.providers import PROVIDERS, list_providers
from mclst.runtime.report.files import Files
from mclst.runtime.run.context import most_bad_tiles
from mclst.runtime.run.job import Job, retrieval_spec, run_job
from mclst.runtime.run.options import MAX_BAD_TILES
from mclst.runtime.run.report import Run
from mclst.runtime.slide.open import READERS

PATH = click.Path(path_type=Path)
NAMED_FAILURES = 5


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("slide", type=PATH, required=False)
@click.option(
    "--spots",
    "spots_path",
    type=PATH,
    help="Where to predict: a table of spots (Space Ranger, legacy ST, or id,x,y in level-0 pixels).",
)
@click.option(
    "--grid",
    "stride_um",
    type=Finite(0.1),
    metavar="STRIDE_UM",
    help="Instead of --spots: a dense grid over the tissue, its places so many µm apart.",
)
@click.option(
    "--tissue-mask",
    "mask_path",
    type=PATH,
    help="Picture of the whole slide at any scale, black where --grid skips.  [default: tissue found by its colour]",
)
@click.option(
    "--genes",
    metavar="A,B,…",
    callback=lambda ctx, param, value: names(value),
    help="Genes of --grid to write as a pyramidal OME-TIFF beside the map.",
)
@bundle_option
@click.option(
    "--out", type=PATH, help="The map to write.  [default: SLIDE's name with .h5ad, in the working folder]"
)
@click.option(
    "--provider",
    type=click.Choice(PROVIDERS),
    default="auto",
    help="What runs the encoder; auto takes the first of these that is here.",
)
@click.option(
    "--list-providers",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, param, value: _list_providers(ctx, value),
    help="Print what can run an encoder here, and why the others cannot.",
)
@click.option(
    "--build/--no-build",
    default=True,
    help="Build a missing TensorRT engine for the GPU at hand and keep it in the bundle.",
)
@click.option(
    "--retriever",
    type=click.Choice(("auto", *RETRIEVERS)),
    default="auto",
    help="What computes the retrieval; cuda takes embeddings where a GPU made them.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    help="Precision of the encoder, one the bundle was exported in.",
)
@retrieval_options()
@click.option("--batch-size", type=click.IntRange(1, 4096), default=16, help="Tiles encoded at once.")
@click.option(
    "--memory-budget",
    type=Bytes(),
    help="Memory to stay within, such as 4GB: picks batch (up to --batch-size), ring and bank precision, and says how.",
)
@click.option(
    "--workers", type=click.IntRange(1, 256), default=min(8, os.cpu_count() or 2), help="Reading threads."
)
@click.option(
    "--mpp",
    type=Finite(0.05, 10),
    help="µm/px of level 0, before what the slide and the spots' array say.",
)
@click.option("--reader", type=click.Choice(READERS), default="auto", help="What decodes the slide.")
@click.option(
    "--all-spots", is_flag=True, help="Also spots the table marks as not in tissue or not selected."
)
@click.option(
    "--picture/--no-picture", default=True, help="Draw the most spatially structured genes beside the map."
)
@file_options
@cohort_options
@server_options
@click.option(
    "--report/--no-report",
    default=True,
    help="Write a .run.json beside the map: what was done, and how fast.",
)
@click.option(
    "--max-bad-tiles",
    default=MAX_BAD_TILES,
    metavar="N|N%",
    callback=lambda ctx, param, value: _bad_tiles(value),
    help="Tiles that may be unreadable (their rows are NaN) before the run fails; a share is rounded up.",
)
@click.option(
    "--resume/--no-resume",
    default=True,
    help="Carry on where a stopped run of the same inputs and settings left off.",
)
@click.option("--overwrite", is_flag=True, help="Replace a map of that name.")
@click.option("--json", "json_path", type=PATH, help="Write the summary as JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Name every spot whose tile could not be read.")
@click.version_option(package_name="mclst")
@command
def main(
    slide: Path | None,
    spots_path: Path | None,
    stride_um: float | None,
    mask_path: Path | None,
    genes: tuple[str, ...],
    bundle_path: Path,
    out: Path | None,
    provider: str,
    build: bool,
    retriever: str,
    precision: str,
    batch_size: int,
    memory_budget: int | None,
    workers: int,
    mpp: float | None,
    reader: str,
    all_spots: bool,
    picture: bool,
    report: bool,
    files: Files,
    cohort: CohortOptions,
    server: ServerOptions,
    max_bad_tiles: str,
    resume: bool,
    overwrite: bool,
    json_path: Path | None,
    quiet: bool,
    verbose: bool,
    **retrieval: Any,
) -> None:
    """Predict gene expression at the spots of a SLIDE, or of many, and write it as a map.

    The .h5ad opens in scanpy and squidpy as it is; its path is printed on stdout. Beside it stand a picture of the
    most spatially structured genes, a page to look at in a browser, and a report of the run. A run that was stopped is carried on by the same command.

    --slides takes a table, a slide per row: slide, spots (or grid), if wished name, and any of tissue-mask, genes, mpp,
    reader, all-spots, max-bad-tiles, k, rank, distance, weighting and temperature, where a cell has it, before the
    option here. Finished slides are left as they are; one that fails is recorded, the others go on, and the exit code
    is 3.
    """
    if (slide is None) == (cohort.slides is None):
        raise click.UsageError("give either a SLIDE or a table of them with --slides")
    if slide is not None and (spots_path is None) == (stride_um is None):
        raise click.UsageError("give either --spots or --grid")
    if slide is None and spots_path is not None:
        raise click.UsageError("with --slides the spots stand in the table")
    if stride_um is None and slide is not None and (mask_path is not None or genes):
        raise click.UsageError("--tissue-mask and --genes belong to --grid")
    job = Job(
        slide=slide or Path(),
        out=out,
        spots=spots_path,
        grid=stride_um,
        mask=mask_path,
        reader=reader,
        mpp=mpp,
        all_spots=all_spots,
        genes=genes,
        max_bad_tiles=max_bad_tiles,
        retrieval={name: value for name, value in retrieval.items() if value is not None},
    )
    settings = {
        "provider": provider,
        "build": build,
        "precision": precision,
        "retriever": retriever,
        "batch_size": batch_size,
        "memory_budget": memory_budget,
        "workers": workers,
        "overwrite": overwrite,
        "resume": resume,
        "picture": picture,
        "report": report,
        "files": files,
    }
    if cohort.slides is not None:
        sys.exit(
            run_cohort(
                cohort,
                job,
                settings,
                server=server,
                bundle_path=bundle_path,
                json_path=json_path,
                quiet=quiet,
            )
        )
    check_json(
        json_path,
        overwrite=overwrite,
        inputs=(slide, spots_path, mask_path, bundle_path),
        outputs=job.outputs(picture=picture, report=report, files=files).all,
    )

    def tell(text: str) -> None:
        say(f"Note: {text}", quiet=quiet)

    with ready(server, bundle_path, tell) as here:
        try:
            retrieval_spec(here.bundle, job.retrieval)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        run = run_job(
            here.bundle,
            job,
            settings | here.settings,
            opened=here.opened,
            watch=lambda count: progress("tiles", count, quiet=quiet),
            tell=tell,
        )
    table(_summary(run, here.bundle), quiet=quiet)
    _say_failures(run, verbose=verbose)
    if json_path is not None:
        publish_json(json_path, run.as_json())
    if json_path is None or str(json_path) != "-":
        click.echo(str(run.map_path))


def _list_providers(ctx: click.Context, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    for name, here, what in list_providers():
        click.echo(f"{name:<12}  {here:<3}  {what}")
    ctx.exit()


def _bad_tiles(value: str) -> str:
    try:
        most_bad_tiles(value, 1)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return value


def _summary(run: Run, bundle: Bundle) -> list[tuple[str, Any]]:
    rate = {stage: f"{run.tiles_per_second(stage):,.0f}" for stage in ("read", "encode", "retrieve", "total")}
    genes = ", ".join(f"{gene} ({value:.2f})" for gene, value in run.structured[:5] if math.isfinite(value))
    retrieves = bundle.manifest.kind == "retrieval"
    last = "retrieve" if retrieves else "express"
    how = (
        f"retrieval {run.retriever}"
        if retrieves
        else "expression straight from the network, without neighbours"
    )
    rows: list[tuple[str, Any]] = [
        ("spots", f"{run.spots:,}, {run.coordinates}"),
        ("genes", f"{run.genes:,}, normalised {bundle.manifest.normalisation.expression}"),
        ("tiles", run.tile),
        (
            "tiles/s",
            f"read {{read}}, encode {{encode}}, {last} {{retrieve}}; whole run {{total}}".format(**rate),
        ),
        ("provider", f"{bundle.server or run.provider}, encoder in {run.precision}, {how}"),
    ]
    if run.mpp is not None:
        rows.insert(2, ("mpp", f"{run.mpp:.4g} µm/px, {run.mpp_source}"))
    if genes:
        rows.append(("structured", f"{genes} (Moran's I)"))
    rows.append(("map", run.map_path))
    if run.picture_path is not None:
        rows.append(("picture", run.picture_path))
    if run.dense_path is not None:
        rows.append(("dense", run.dense_path))
    rows += run.files.items()
    return rows


def _say_failures(run: Run, *, verbose: bool) -> None:
    if not run.failed:
        return
    say(f"Warning: {len(run.failed)} of {run.spots} tiles could not be read; their rows are NaN:")
    shown = run.failed if verbose else run.failed[:NAMED_FAILURES]
    table((spot, reason) for spot, reason in shown)
    if len(shown) < len(run.failed):
        say(f"  and {len(run.failed) - len(shown)} more; -v names them all")


if __name__ == "__main__":
    sys.exit(main())
