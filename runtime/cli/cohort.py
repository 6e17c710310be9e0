"""`mclst-infer --slides`: its options, and what it does with them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mclst.runtime.bundle.bundle import Bundle
from mclst.runtime.cli.server_options import OpenedBundle, ServerOptions, ready
from mclst.runtime.cohort.cluster import cluster, run_on_cluster
from mclst.runtime.cohort.report import STOPPED, Board, CohortReport, board
from mclst.runtime.cohort.run import DONE, FAILED, SlideOutcome, run_in_turn
from mclst.runtime.cohort.table import read_cohort, shard_of
from mclst.runtime.console import Finite, check_json, publish_json, say
from mclst.runtime.errors import InputError, OutputError, describe_error
from mclst.runtime.resources import available_cores
from mclst.runtime.run.job import Job, retrieval_spec

SOME_FAILED = 3
NOTHING_LOST = "finished slides are kept, and the same command goes on with the others"


@dataclass(frozen=True)
class CohortOptions:
    """What the command line says of a cohort: its table, and which part of it, (i, n), this run does.

    cluster: "auto" or a Ray cluster's address, None: this process. cores: of a worker there. shard_tiles: slides of more
    tiles are split there. deadline: seconds that an attempt at a slide, or at a part of one, may take there.
    """

    slides: Path | None = None
    shard: tuple[int, int] = (1, 1)
    cluster: str | None = None
    cores: int | None = None
    shard_tiles: int | None = None
    deadline: float | None = None


def _shard(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int]:
    if value is None:
        return 1, 1
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"{value!r} is not i/n with i from 1 to n, such as 3/8")
    return int(match[1]), int(match[2])


OPTIONS = (
    click.option(
        "--slides",
        type=click.Path(path_type=Path),
        help="Instead of SLIDE: a table of many, with columns slide, spots and options of each; --out is a folder.",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        callback=_shard,
        help="Of --slides, every N-th from the I-th on.  [default: all]",
    ),
    click.option(
        "--cluster",
        metavar="auto|ADDRESS",
        help="Run --slides on Ray workers: of the cluster at ADDRESS, or with auto of this machine.",
    ),
    click.option(
        "--cores",
        type=click.IntRange(1),
        help="CPU cores of each worker of --cluster, where it has no GPU.  [default: 4, or what a machine has]",
    ),
    click.option(
        "--shard-tiles",
        type=click.IntRange(1),
        help="Of --cluster: slides of more tiles are shared by workers and merged.  [default: never]",
    ),
    click.option(
        "--deadline",
        type=Finite(0, min_open=True),
        metavar="SECONDS",
        help="Of --cluster: a worker that is longer at a slide, or at a part of one, is ended, which counts as one of three "
        "attempts. Without --cluster nothing could end it, so the option is refused.  [default: none]",
    ),
)


def cohort_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click callback these options, and hand it what they say as `cohort`, a CohortOptions."""

    @functools.wraps(function)
    def wrapped(**given: Any) -> Any:
        own = {name: given.pop(name) for name in CohortOptions.__dataclass_fields__}
        if own["slides"] is None and own["shard"] != (1, 1):
            raise click.UsageError("--shard belongs to --slides")
        if own["cluster"] is not None and own["slides"] is None:
            raise click.UsageError("--cluster belongs to --slides")
        if own["cluster"] is None and (own["cores"] or own["shard_tiles"]):
            raise click.UsageError("--cores and --shard-tiles belong to --cluster")
        if own["cluster"] is None and own["deadline"]:
            raise click.UsageError(
                "--deadline belongs to --cluster, whose workers can be ended; --cluster auto runs them on this machine"
            )
        return function(cohort=CohortOptions(**own), **given)

    for option in reversed(OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def run_cohort(
    cohort: CohortOptions,
    otherwise: Job,
    settings: Mapping[str, Any],
    *,
    server: ServerOptions,
    bundle_path: Path,
    json_path: Path | None,
    quiet: bool,
) -> int:
    """Run the slides of a table; the exit code: 0, or SOME_FAILED.

    otherwise: options of a slide that its row does not give; its `out` is the folder. settings: arguments of `predict`
    that all slides share. server, bundle_path: where the bundle is.
    """
    assert cohort.slides is not None, "asked for with --slides alone"
    if not settings["report"]:
        raise click.UsageError(
            "--no-report does not go with --slides: a finished slide is known by its report"
        )
    if server.url is not None and cohort.cluster is not None:
        raise click.UsageError("--server and --cluster do not go together: give one of them")
    folder = otherwise.out or Path(cohort.slides.stem)
    jobs = shard_of(
        read_cohort(cohort.slides, folder, otherwise, _convert(click.get_current_context())), *cohort.shard
    )
    _check_places(folder, jobs, cohort)
    check_json(json_path, overwrite=bool(settings["overwrite"]), inputs=(cohort.slides, bundle_path))
    with ready(server, bundle_path, lambda text: say(f"Note: {text}", quiet=quiet)) as here:
        _check_retrieval(here.bundle, jobs)
        report = _run(cohort, here, jobs, {**settings, **here.settings}, folder, quiet=quiet)
    return _conclude(report, json_path, quiet=quiet)


def _run(
    cohort: CohortOptions,
    here: OpenedBundle,
    jobs: Mapping[str, Job],
    settings: Mapping[str, Any],
    folder: Path,
    *,
    quiet: bool,
) -> CohortReport:
    part = "" if cohort.shard == (1, 1) else ".{}-of-{}".format(*cohort.shard)
    report = CohortReport(
        folder / f"cohort{part}.run.json",
        {"bundle_sha256": here.bundle.sha256, "table": str(cohort.slides), "shard": list(cohort.shard)},
        len(jobs),
    )
    try:
        with board(jobs, quiet=quiet) as shown:
            for outcome in _outcomes(cohort, here, jobs, settings, shown):
                report.add(outcome)
                shown.end(outcome)
    except BaseException as error:
        report.write(STOPPED, describe_error(error)[0])
        error.add_note(NOTHING_LOST)
        raise
    return report


def _outcomes(
    cohort: CohortOptions,
    here: OpenedBundle,
    jobs: Mapping[str, Job],
    settings: Mapping[str, Any],
    shown: Board,
) -> Iterator[SlideOutcome]:
    if cohort.cluster is None:
        yield from run_in_turn(here.bundle, jobs, settings, here.opened, watch=shown.watch, tell=shown.tell)
        return
    with cluster(cohort.cluster) as ray:
        cores = cohort.cores or min(4, available_cores())
        for outcome in run_on_cluster(
            ray,
            here.bundle,
            jobs,
            settings,
            cores=cores,
            shard_tiles=cohort.shard_tiles,
            deadline=cohort.deadline,
        ):
            for note in outcome.notes:
                shown.tell(note)
            yield outcome


def _conclude(report: CohortReport, json_path: Path | None, *, quiet: bool) -> int:
    failed = report.of(FAILED)
    status = FAILED if failed else DONE
    report.write(status)
    if failed:
        say(f"Error: {len(failed)} of {len(report.outcomes)} slides failed; {NOTHING_LOST}:")
        for outcome in failed:
            say(f"  {outcome.name}: {outcome.error}")
    say(f"Report: {report.path}", quiet=quiet)
    if json_path is not None:
        publish_json(json_path, report.as_json(status))
    if json_path is None or str(json_path) != "-":
        for outcome in _with_maps(report.outcomes):
            click.echo(str(outcome.map))
    return SOME_FAILED if failed else 0


def _with_maps(outcomes: list[SlideOutcome]) -> list[SlideOutcome]:
    return [outcome for outcome in outcomes if outcome.status != FAILED]


def _convert(ctx: click.Context) -> Callable[[str, str], Any]:
    """A cell is understood as the option of the column's name is."""
    options = {name: param for param in ctx.command.params for name in param.opts}

    def convert(column: str, text: str) -> Any:
        param = options[f"--{column}"]
        try:
            return param.process_value(ctx, text)
        except click.BadParameter as error:
            raise ValueError(error.message) from error

    return convert


def _check_places(folder: Path, jobs: Mapping[str, Job], cohort: CohortOptions) -> None:
    for name in jobs:
        if name.casefold() == "cohort" or re.fullmatch(r"cohort\.\d+-of-\d+", name.casefold()):
            raise InputError(
                f"{cohort.slides} names a slide {name!r}, as the run's own report; name it otherwise"
            )
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise OutputError(
            f"{folder} is not a folder, and --out of --slides is one; choose another"
        ) from error
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made ({error.strerror or error}); choose another --out"
        ) from error


def _check_retrieval(bundle: Bundle, jobs: Mapping[str, Job]) -> None:
    for name, job in jobs.items():
        try:
            retrieval_spec(bundle, job.retrieval)
        except ValueError as error:
            raise InputError(f"slide {name!r}: {error}") from error
