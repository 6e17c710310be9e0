"""`mclst-bench compare`: two documents → ratios with their confidence, exit status 1 on a regression."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.result_files import ResultFiles, result_options
from mclst.benchmarks.harness.tables import show_table
from mclst.benchmarks.reporting.compare import NotComparable, different_ground
from mclst.benchmarks.reporting.compare import compare as changes_between
from mclst.runtime.console import Finite, command, say
from mclst.runtime.errors import InputError

PATH = click.Path(path_type=Path)


@click.command(context_settings={"show_default": True})
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@click.option(
    "--tolerance", type=Finite(0, 10), default=0.05, help="A regression is slower by more than this share."
)
@click.option("--only", help="Contenders whose name holds this text.")
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
    """Hold the run AFTER against the run BEFORE, two documents of the same benchmark's --json.

    Tells how many times longer each contender takes, with a 95 % interval. Exit status 1 where one is more than
    --tolerance slower and its interval lies above 1.
    """
    result_files.check((before, after))
    documents = [_read(path) for path in (before, after)]
    try:
        changes, alone = changes_between(*documents)
    except NotComparable as error:
        raise InputError(f"{before} and {after}: {error}") from error
    changes = [change for change in changes if only is None or only in change.what]
    if not changes:
        raise InputError(f"no contender's name holds {only!r}; leave --only out to see them all")
    slower = [change for change in changes if change.slower(tolerance)]
    ground = different_ground(*documents)
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
        for line in ground:
            say(f"differs: {line}")
        if alone:
            say(f"in one of them alone: {', '.join(alone)}")
    result_files.publish(
        lambda: {
            "schema": "mclst-bench-compare/1",
            "before": before.name,
            "after": after.name,
            "tolerance": tolerance,
            "changes": [asdict(change) | {"slower": change in slower} for change in changes],
            "different_ground": ground,
            "in_one_alone": alone,
        }
    )
    if slower:
        say(f"{len(slower)} of {len(changes)} are more than {100 * tolerance:g} % slower")
        sys.exit(1)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); give a document of mclst-bench"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); give a document of mclst-bench --json") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object; give a document of mclst-bench --json")
    return found
