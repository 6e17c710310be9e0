"""`mclst-infer`: options → predict → exit status."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mclst.runtime.bundle.location import BundleLocation, local
from mclst.runtime.choices import READERS
from mclst.runtime.cli.bundle_options import any_bundle_option, open_any_bundle, signature_option
from mclst.runtime.cli.cohort import CohortOptions, cohort_options, run_cohort
from mclst.runtime.cli.run_options import run_options
from mclst.runtime.cli.server_options import ServerOptions, open_model, server_options
from mclst.runtime.cli.slide_argument import SlideArgument
from mclst.runtime.cli.structured import structured_rows
from mclst.runtime.click_types import PATH, SETTINGS, Finite, given_inputs, refuse_unowned
from mclst.runtime.console import check_json, command, progress, publish_result, say, table
from mclst.runtime.entry_points import STARTED
from mclst.runtime.section_options import BINS
from mclst.sections.location import SlideLocation

if TYPE_CHECKING:
    from mclst.runtime.inference.model import Model
    from mclst.runtime.progress import Advance
    from mclst.runtime.run.options import RunOptions
    from mclst.runtime.run.report import Run
    from mclst.runtime.sharing.signature import Trusted

NAMED_FAILURES = 5


def _list_providers(location: BundleLocation | None, trusted: Trusted | None, batch_size: int) -> None:
    from mclst.runtime.providers.choice import native_precisions
    from mclst.runtime.providers.opening import list_providers

    bundle = None if location is None else open_any_bundle(location, trusted, lambda text: None)
    for name, available, description in list_providers():
        click.echo(f"{name:<12}  {available:<3}  {description}")
        for row in native_precisions(name, bundle, batch_size) if available == "yes" else ():
            notes = [f"by {row.instructions}"] if row.instructions else []
            if row.in_bundle is not None:
                notes.append("in the bundle" if row.in_bundle else "not in the bundle")
            if row.tiles_per_second is not None:
                notes.append(f"{row.tiles_per_second:,.1f} tiles/s")
            click.echo(f"{'':<12}       {row.precision:<4}  {', '.join(notes)}".rstrip())


@click.command(context_settings=SETTINGS)
@command
@click.argument("slide", type=SlideArgument(), required=False)
@click.option(
    "--spots",
    "spots_path",
    type=PATH,
    help="Spots to predict: Space Ranger, legacy ST, id,x,y in pixels or µm, GeoJSON cells, .h5ad, or a "
    "measured section (Xenium, Visium HD, SpatialData).",
)
@BINS
@click.option(
    "--grid",
    "stride_um",
    type=Finite(0.1),
    metavar="STRIDE_UM",
    help="Instead of --spots: a dense grid over the tissue, with this stride in µm.",
)
@click.option(
    "--tissue-mask",
    "mask_path",
    type=PATH,
    help="Image of the whole slide at any scale; --grid skips black and transparent parts.  "
    "[default: tissue by color]",
)
@click.option(
    "--region",
    "region_path",
    type=PATH,
    help="GeoJSON of polygons in level-0 pixels, as QuPath exports: spots or grid inside them alone.",
)
@click.option("--all-spots", is_flag=True, help="Include spots marked as not in tissue or not selected.")
@click.option("--reader", type=click.Choice(READERS), default="auto", help="Library that decodes the slide.")
@any_bundle_option
@signature_option
@server_options
@click.option(
    "--out", type=PATH, help="Map to write.  [default: SLIDE's name with .h5ad, in the working folder]"
)
@run_options
@cohort_options
@click.option(
    "--list-providers",
    is_flag=True,
    help="List encoder providers available here with the precisions they compute in, and why others are not; "
    "with --bundle, its precisions and measured speeds.",
)
@click.option("--json", "json_path", type=PATH, help="Write the summary as JSON; - for stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="List every spot whose tile could not be read, and where time was spent.",
)
@click.version_option(package_name="mclst")
def main(
    slide: SlideLocation | None,
    spots_path: Path | None,
    bins: str | None,
    stride_um: float | None,
    mask_path: Path | None,
    region_path: Path | None,
    all_spots: bool,
    reader: str,
    bundle_path: BundleLocation,
    trusted: Trusted | None,
    server: ServerOptions,
    out: Path | None,
    options: RunOptions,
    cohort: CohortOptions,
    list_providers: bool,
    json_path: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Predict gene expression at the spots of a SLIDE, or of many, and write it as a map.

    SLIDE is a file, the folder of an OME-Zarr, or an address (s3://, gs://, https://), of which only what the
    tiles need is fetched.

    The .h5ad opens in scanpy and squidpy; its path is printed on stdout. A picture of the most spatially
    structured genes, a viewer page and a report are written next to it. Re-run the same command to resume an
    interrupted run.

    --slides takes a table with a row per slide. Its columns are slide, spots or grid, and optionally name,
    tissue-mask, region, bin, genes, mpp, reader, all-spots, max-bad-tiles, any-stain, intervals, reliable,
    outside-level, max-outside, k, rank, distance, weighting and temperature; a cell overrides the option.
    Finished slides are skipped. A slide that fails is recorded, the others continue, and the exit code is 3.
    """
    began = time.perf_counter()
    if list_providers:
        source = click.get_current_context().get_parameter_source("bundle_path")
        named = source is not ParameterSource.DEFAULT
        _list_providers(bundle_path if named else None, trusted, options.batch_size)
        return
    if (slide is None) == (cohort.slides is None):
        raise click.UsageError("give either a SLIDE or a table of them with --slides")
    if slide is not None and (spots_path is None) == (stride_um is None):
        raise click.UsageError("give either --spots or --grid")
    if slide is None and spots_path is not None:
        raise click.UsageError("with --slides, the table names the spots")
    if stride_um is None and slide is not None and (mask_path is not None or options.genes):
        raise click.UsageError("--tissue-mask and --genes belong to --grid")
    if bins is not None and slide is not None and spots_path is None:
        raise click.UsageError("--bin belongs to --spots")
    if slide is not None and spots_path is None:
        refuse_unowned("--spots", "all_spots")
    from mclst.runtime.resources import gc_disabled
    from mclst.runtime.run.early import begin_loading

    loading = ExitStack()
    click.get_current_context().call_on_close(loading.close)
    # What imports make stays, and looking it through as it grows takes 0.1 s.
    loading.enter_context(gc_disabled())
    from mclst.runtime.run.job import Job, begin_opening, run_job
    from mclst.runtime.run.options import RetrievalError

    job = Job(
        slide or Path(), out, spots_path, stride_um, mask_path, reader, all_spots, region_path, options, bins
    )
    folder = None if server.url is not None else local(bundle_path)
    opening = None if slide is None else begin_opening(job, folder)
    if cohort.slides is not None:
        loading.close()
        sys.exit(
            run_cohort(
                cohort,
                job,
                server=server,
                bundle_path=bundle_path,
                trusted=trusted,
                json_path=json_path,
                quiet=quiet,
            )
        )
    check_json(
        json_path,
        overwrite=options.overwrite,
        inputs=given_inputs(),
        outputs=job.outputs().all,
    )

    def notify(text: str) -> None:
        say(f"Note: {text}", quiet=quiet)

    def watch(count: int) -> AbstractContextManager[Advance]:
        loading.close()
        return progress("tiles", count, quiet=quiet)

    if folder is not None:
        click.get_current_context().call_on_close(begin_loading(folder, options).wait)
    with open_model(server, bundle_path, trusted, notify) as model:
        try:
            run = run_job(model, job, watch=watch, notify=notify, opening=opening)
        except RetrievalError as error:
            raise click.UsageError(str(error)) from error
        ended = time.perf_counter()
        table(_summary(run, model), quiet=quiet)
    _say_failures(run, verbose=verbose)
    phases = _phases(run, began, ended)
    if verbose:
        _say_seconds(run, phases)
    publish_result(json_path, lambda: {**run.as_json(), "phases": phases}, run.map_path)


def _summary(run: Run, model: Model) -> list[tuple[str, Any]]:
    rate = {stage: f"{run.tiles_per_second(stage):,.0f}" for stage in ("read", "encode", "retrieve", "total")}
    retrieves = model.manifest.kind == "retrieval"
    last = "retrieve" if retrieves else "express"
    how = (
        f"retrieval {run.retriever}"
        if retrieves
        else "expression straight from the network, without neighbors"
    )
    before = "embeddings of an earlier run, " if run.reused else "read {read}, encode {encode}, "
    rows: list[tuple[str, Any]] = [
        ("spots", f"{run.spots:,}, {run.coordinates}"),
        ("genes", f"{run.genes:,}, normalized {model.manifest.normalization.expression}"),
        ("tiles", run.tile),
        (
            "tiles/s",
            f"{before}{last} {{retrieve}}; whole run {{total}}".format(**rate),
        ),
        ("provider", f"{model.server or run.provider}, encoder in {run.precision}, {how}"),
    ]
    if run.choice is not None and run.choice.timings:
        rows.append(("chosen", _choice(run, model)))
    if run.mpp is not None:
        rows.insert(2, ("mpp", f"{run.mpp:.4g} µm/px, {run.mpp_source}"))
    rows += structured_rows(run.structured)
    if run.verdict:
        rows.append(("trust", run.verdict))
    if run.reliable_genes is not None:
        rows.append(("reliable", f"{run.reliable_genes:,} of {run.genes:,} genes"))
    rows.append(("map", run.map_path))
    if run.picture_path is not None:
        rows.append(("picture", run.picture_path))
    if run.dense_path is not None:
        rows.append(("dense", run.dense_path))
    rows += run.files.items()
    return rows


def _choice(run: Run, model: Model) -> str:
    """Say what was chosen, how fast it is, and what it keeps of the expression."""
    choice = run.choice
    assert choice is not None, "the caller checks"
    faster = "" if choice.times_fp32 is None else f", {choice.times_fp32:.1f} times as fast as fp32"
    text = f"{choice}{faster} (measured here, {choice.measured})"
    if choice.precision == "fp32":
        return text
    r = model.pearson_kept(choice.precision)
    kept = "" if r is None else f"r {r:.4f} per gene with the checkpoint's expression; "
    return f"{text}; {kept}--precision fp32 for its digits"


def _phases(run: Run, began: float, ended: float) -> dict[str, float]:
    """Return the seconds of each phase, from the start of the process to the last file."""
    stream = run.seconds["stream"]
    phases = {
        "start": began - STARTED,
        "open": run.stream_ended - stream - began,
        "stream": stream,
        "publish": ended - run.stream_ended,
    }
    return {name: round(seconds, 4) for name, seconds in phases.items()}


def _say_seconds(run: Run, phases: Mapping[str, float]) -> None:
    """Say where the time went."""
    rows = [("seconds", ", ".join(f"{name} {value:.2f}" for name, value in phases.items()))]
    stages = (f"{name} {value:.2f}" for name, value in run.seconds.items() if name not in phases)
    table([*rows, ("  of these", ", ".join(stages))])


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
