"""`mclst-infer --slides`: its options, and running a table of slides."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.runtime.atomic import check_distinct
from mclst.runtime.bundle.location import BundleLocation
from mclst.runtime.cli.server_options import ServerOptions, open_model
from mclst.runtime.click_types import PATH, Finite, add_options, given_inputs
from mclst.runtime.console import check_json, publish_result, say
from mclst.runtime.errors import InputError, OutputError, describe_error

if TYPE_CHECKING:
    from mclst.runtime.cohort.report import Board, CohortReport
    from mclst.runtime.cohort.run import SlideOutcome
    from mclst.runtime.inference.model import Model
    from mclst.runtime.run.job import Job
    from mclst.runtime.sharing.signature import Trusted

SOME_FAILED = 3
RERUN = "finished slides are kept, and the same command resumes with the others"


@dataclass(frozen=True)
class CohortOptions:
    """A table of slides and how to run it.

    shard: (i, n), run every n-th slide from the i-th. cluster: "auto" or a Ray cluster's address, None: this
    process. cores: of a worker. shard_tiles: slides with more tiles are split. deadline: seconds per attempt.
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
        type=PATH,
        help="Instead of SLIDE: a table of slides with their spots and options; --out is a folder.",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        callback=_shard,
        help="Run every N-th of --slides from the I-th.  [default: all]",
    ),
    click.option(
        "--cluster",
        metavar="auto|ADDRESS",
        help="Run --slides on the Ray cluster at ADDRESS; auto starts workers on this machine.",
    ),
    click.option(
        "--cores",
        type=click.IntRange(1),
        help="CPU cores per worker of --cluster without a GPU.  [default: 4, or what a machine has]",
    ),
    click.option(
        "--shard-tiles",
        type=click.IntRange(1),
        help="With --cluster: split slides with more tiles among workers and merge.  [default: never]",
    ),
    click.option(
        "--deadline",
        type=Finite(0, min_open=True),
        metavar="SECONDS",
        help="With --cluster: kill a worker that takes longer; it counts as one of three attempts."
        "  [default: none]",
    ),
)


def cohort_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add these options to a click callback, which gets them as `cohort`, a CohortOptions."""

    @functools.wraps(function)
    def wrapped(**values: Any) -> Any:
        cohort = CohortOptions(**{name: values.pop(name) for name in CohortOptions.__dataclass_fields__})
        if cohort.slides is None and cohort.shard != (1, 1):
            raise click.UsageError("--shard belongs to --slides")
        if cohort.cluster is not None and cohort.slides is None:
            raise click.UsageError("--cluster belongs to --slides")
        if cohort.cluster is None and (cohort.cores or cohort.shard_tiles):
            raise click.UsageError("--cores and --shard-tiles belong to --cluster")
        if cohort.cluster is None and cohort.deadline:
            raise click.UsageError(
                "--deadline belongs to --cluster, whose workers can be killed; --cluster auto runs them on "
                "this machine"
            )
        return function(cohort=cohort, **values)

    return add_options(*OPTIONS)(wrapped)


def run_cohort(
    cohort: CohortOptions,
    defaults: Job,
    *,
    server: ServerOptions,
    bundle_path: BundleLocation,
    trusted: Trusted | None,
    json_path: Path | None,
    quiet: bool,
) -> int:
    """Run the slides of a table; return the exit code, 0 or SOME_FAILED.

    defaults: options of a slide that its row does not give; its `out` is the folder.
    """
    from mclst.runtime.cohort.table import read_cohort, shard_of

    assert cohort.slides is not None, "the caller checks"
    options = defaults.options
    if not options.report:
        raise click.UsageError(
            "--no-report does not go with --slides: a finished slide is recognized by its report"
        )
    if server.url is not None and cohort.cluster is not None:
        raise click.UsageError("--server and --cluster do not go together: give one of them")
    folder = defaults.out or Path(cohort.slides.stem)
    jobs = read_cohort(cohort.slides, folder, defaults, _convert(click.get_current_context()))
    report_path = folder / _report_name(cohort.shard)
    _check_names(jobs, cohort.slides)
    inputs = [path for job in jobs.values() for path in job.inputs]
    outputs = [report_path, *(path for job in jobs.values() for path in job.outputs().all)]
    _check_paths(outputs, inputs)
    jobs = shard_of(jobs, *cohort.shard)
    _make_folder(folder)
    inputs += given_inputs()
    check_json(json_path, overwrite=options.overwrite, inputs=inputs, outputs=outputs)
    with open_model(
        server, bundle_path, trusted, lambda text: say(f"Note: {text}", quiet=quiet), len(jobs)
    ) as model:
        _check_retrieval(model, jobs)
        report = _run(cohort, model, jobs, report_path, provider=options.provider, quiet=quiet)
    return _conclude(report, json_path, quiet=quiet)


def _report_name(shard: tuple[int, int]) -> str:
    part = "" if shard == (1, 1) else ".{}-of-{}".format(*shard)
    return f"cohort{part}.run.json"


def _run(
    cohort: CohortOptions,
    model: Model,
    jobs: Mapping[str, Job],
    report_path: Path,
    *,
    provider: str,
    quiet: bool,
) -> CohortReport:
    from mclst.runtime.cohort.report import STOPPED, CohortReport, board

    report = CohortReport(
        report_path,
        {"bundle_sha256": model.sha256, "table": str(cohort.slides), "shard": list(cohort.shard)},
        len(jobs),
    )
    try:
        with board(jobs, quiet=quiet) as shown:
            for outcome in _outcomes(cohort, model, jobs, provider, shown):
                report.add(outcome)
                shown.end(outcome)
    except BaseException as error:
        report.write(STOPPED, describe_error(error)[0])
        error.add_note(RERUN)
        raise
    return report


def _outcomes(
    cohort: CohortOptions, model: Model, jobs: Mapping[str, Job], provider: str, shown: Board
) -> Iterator[SlideOutcome]:
    if cohort.cluster is None:
        from mclst.runtime.cohort.run import run_in_turn

        yield from run_in_turn(model, jobs, watch=shown.watch, notify=shown.notify)
        return
    from mclst.runtime.cohort.cluster import cluster, run_on_cluster
    from mclst.runtime.resources import available_cores

    with cluster(cohort.cluster) as ray:
        for outcome in run_on_cluster(
            ray,
            model,
            jobs,
            provider=provider,
            cores=cohort.cores or min(4, available_cores()),
            shard_tiles=cohort.shard_tiles,
            deadline=cohort.deadline,
        ):
            for note in outcome.notes:
                shown.notify(note)
            yield outcome


def _conclude(report: CohortReport, json_path: Path | None, *, quiet: bool) -> int:
    from mclst.runtime.cohort.run import DONE, FAILED

    failed = report.of(FAILED)
    status = FAILED if failed else DONE
    report.write(status)
    if failed:
        say(f"Error: {len(failed)} of {len(report.outcomes)} slides failed; {RERUN}:")
        for outcome in failed:
            say(f"  {outcome.name}: {outcome.error}")
    say(f"Report: {report.path}", quiet=quiet)
    maps = (outcome.map for outcome in report.outcomes if outcome.status != FAILED)
    publish_result(json_path, lambda: report.as_json(status), *maps)
    return SOME_FAILED if failed else 0


def _convert(ctx: click.Context) -> Callable[[str, str], Any]:
    """Return a function that parses a cell as the option named like its column."""
    options = {name: param for param in ctx.command.params for name in param.opts}

    def convert(column: str, text: str) -> Any:
        param = options[f"--{column}"]
        try:
            return param.process_value(ctx, text)
        except click.BadParameter as error:
            raise ValueError(error.message) from error

    return convert


def _check_names(jobs: Mapping[str, Job], table: Path) -> None:
    for name in jobs:
        if name.casefold() == "cohort" or re.fullmatch(r"cohort\.\d+-of-\d+", name.casefold()):
            raise InputError(
                f"{table} names a slide {name!r}, like the run's own report; choose another name"
            )


def _make_folder(folder: Path) -> None:
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


def _check_paths(outputs: list[Path | None], of_slides: list[Path]) -> None:
    """Refuse outputs of any slide that are an input of any, also of another shard's, or of the run."""
    # A map may be kept in the folder of the section that names its spots.
    check_distinct(outputs, of_slides, inside=False)
    check_distinct(outputs, given_inputs())


def _check_retrieval(model: Model, jobs: Mapping[str, Job]) -> None:
    from mclst.runtime.run.context import retrieval_spec
    from mclst.runtime.run.options import RetrievalError

    for name, job in jobs.items():
        try:
            retrieval_spec(model, job.options)
        except RetrievalError as error:
            raise InputError(f"slide {name!r}: {error}") from error
