"""`mclst-bench trust`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.runtime.click_types import PATH
from mclst.runtime.console import command, progress, say
from mclst.runtime.errors import InputError

HEADINGS = {
    "file": "map",
    "outside": "outside",
    "nominal": "nominal",
    "covered": "covered",
    "reliable": "reliable genes",
    "reliable_r": "r reliable",
    "other_r": "r others",
    "above_low_r": "above low r",
    "spearman": "rank r of error",
}


@click.command()
@click.argument("maps", metavar="MAP...", type=PATH, nargs=-1, required=True)
@click.option("--truth", type=PATH, required=True, help="Measured sections.")
@click.option(
    "--section", "sections", multiple=True, help="Of a map; once per map.  [default: by the slide's name]"
)
@result_options(json="Write a row per map; - for stdout.")
@command
def trust(
    maps: tuple[Path, ...],
    truth: Path,
    sections: tuple[str, ...],
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Hold what each MAP says of its own errors against its measured section.

    The figures are those of mclst-eval: coverage of the intervals, reliable genes, and whether the expected
    error ranks the spots.
    """
    if sections and len(sections) != len(maps):
        raise click.UsageError(f"there are {len(maps)} maps and {len(sections)} --section; give one for each")
    result_files.check()
    from mclst.benchmarks.harness.machine import new_document
    from mclst.evaluation.trust import score_trust
    from mclst.runtime.expression_map.measured import choose_section, pair_with_truth, read_map

    document = new_document("mclst-bench-trust/1")
    rows: list[dict[str, Any]] = []
    with progress("maps", len(maps), quiet=quiet) as advance:
        for number, path in enumerate(maps):
            predicted = read_map(path)
            source = choose_section(predicted, truth, sections[number] if sections else None)
            score = score_trust(path, pair_with_truth(predicted, source))
            if score is None:
                raise InputError(
                    f"{path} has nothing that tells its errors; give a map of a calibrated bundle"
                )
            rows.append({"file": path.name, **score.as_json(), "made_by": _made_by(path)})
            advance(1)
    if not quiet:
        _show(rows)
    result_files.publish({**document, "results": rows})


def _made_by(path: Path) -> Mapping[str, Any]:
    """What the map says of how it was made."""
    from mclst.runtime.expression_map.reader import open_map

    with open_map(path) as expression_map:
        said = expression_map.provenance
    bundle, verdict = said.get("bundle", {}), said.get("trust", {})
    return {
        "bundle": bundle.get("title"),
        "checkpoint_sha256": bundle.get("checkpoint_sha256"),
        "precision": said.get("settings", {}).get("precision"),
        "versions": said.get("versions"),
        "verdict": verdict.get("verdict"),
    }


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    from mclst.benchmarks.harness.tables import show_table

    cells = []
    for row in rows:
        by = {own["ranking"]: own["spearman"] for own in row["abstention"]}
        values = {**row, "spearman": by.get("expected_error")}
        cells.append([_cell(values[name]) for name in HEADINGS])
    show_table("maps against what was measured", list(HEADINGS.values()), cells)
    say("covered: share of the measured values in low … high; rank r: Spearman, of spots inside")


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
