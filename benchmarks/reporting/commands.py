"""`mclst-bench compare` and `mclst-bench page`: commands on result files."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from mclst.benchmarks.harness.options import ResultFiles, read_document, result_options
from mclst.runtime.atomic import write_atomically
from mclst.runtime.click_types import PATH, Finite
from mclst.runtime.console import check_outputs, command, say
from mclst.runtime.errors import InputError


@click.command()
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@click.option(
    "--tolerance", type=Finite(0, 10), default=0.05, help="A regression is slower by more than this share."
)
@click.option("--only", help="Contenders whose name contains this text.")
@result_options(json="Write the ratios; - for stdout.")
@command
def compare(
    before: Path,
    after: Path,
    tolerance: float,
    only: str | None,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Compare the runs BEFORE and AFTER, two --json documents of the same benchmark.

    The table has the ratio of times with a 95 % interval. Exit status 1 where a contender is more than
    --tolerance slower and its interval is above 1.
    """
    result_files.check()
    from mclst.benchmarks.harness.tables import show_table
    from mclst.benchmarks.reporting.compare import NotComparable, compare_documents, environment_differences

    documents = [read_document(path) for path in (before, after)]
    try:
        changes, unmatched = compare_documents(*documents)
    except NotComparable as error:
        raise InputError(f"{before} and {after}: {error}") from error
    changes = [change for change in changes if only is None or only in change.what]
    if not changes:
        raise InputError(f"no contender's name contains {only!r}; omit --only to see them all")
    slower = [change for change in changes if change.slower(tolerance)]
    differences = environment_differences(*documents)
    if not quiet:
        show_table(
            f"{after.name} over {before.name}",
            ("", "× as long", "95 %", "rounds", ""),
            [
                (
                    change.what,
                    f"{change.ratio:.3f}",
                    f"{change.low95:.3f} - {change.high95:.3f}",
                    f"{change.rounds[0]}, {change.rounds[1]}",
                    "slower" if change in slower else "",
                )
                for change in changes
            ],
            bold={change.what for change in slower},
        )
        for line in differences:
            say(f"differs: {line}")
        if unmatched:
            say(f"only in one of them: {', '.join(unmatched)}")
    result_files.publish(
        {
            "schema": "mclst-bench-compare/1",
            "before": before.name,
            "after": after.name,
            "tolerance": tolerance,
            "changes": [asdict(change) | {"slower": change in slower} for change in changes],
            "different_ground": differences,
            "in_one_alone": unmatched,
        }
    )
    if slower:
        say(f"{len(slower)} of {len(changes)} are more than {100 * tolerance:g} % slower")
        sys.exit(1)


@click.command()
@click.argument("results", metavar="RESULT.json...", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, default=Path("mclst-bench.html"), help="Page to write.")
@click.option("--title", default="Benchmarks", help="Title of the page.")
@click.option("--overwrite", is_flag=True, help="Replace an existing page.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@command
def page(results: tuple[Path, ...], out: Path, title: str, overwrite: bool, quiet: bool) -> None:
    """Make an HTML page of results that other subcommands wrote with --json; print its path on stdout."""
    check_outputs((out,), None, overwrite=overwrite)
    from mclst.benchmarks.reporting.result_page import result_page

    documents = {path.name: read_document(path) for path in results}
    if len(documents) < len(results):
        raise InputError("two of the files have the same name; rename one")
    write_atomically(out, result_page(title, documents))
    say(f"  {len(documents)} results", quiet=quiet)
    click.echo(str(out))
