"""`mclst-bench page`: results that were written as JSON → a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.reporting.result_page import result_page
from mclst.runtime.atomic import check_apart, check_writable, write_whole
from mclst.runtime.console import command, say
from mclst.runtime.errors import InputError

PATH = click.Path(path_type=Path)


@click.command("page", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("results", metavar="RESULT.json...", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, default=Path("mclst-bench.html"), help="Page to write.")
@click.option("--title", default="Benchmarks", help="Of the page.")
@click.option("--overwrite", is_flag=True, help="Replace a page of that name.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@command
def page(results: tuple[Path, ...], out: Path, title: str, overwrite: bool, quiet: bool) -> None:
    """Make a page of what other subcommands wrote with --json; its path is printed on stdout."""
    check_writable(out, overwrite=overwrite)
    check_apart((out,), results)
    contents = {path.name: _read(path) for path in results}
    if len(contents) < len(results):
        raise InputError("two of the files have the same name; rename one")
    write_whole(out, result_page(title, contents))
    say(f"  {len(contents)} results", quiet=quiet)
    click.echo(str(out))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a JSON file ({error}); give what mclst-bench wrote with --json"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; give what mclst-bench wrote with --json")
    return content
