"""`mclst-bench accuracy`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.benchmarks.accuracy.request import Request
from mclst.benchmarks.harness.options import ResultFiles, result_options
from mclst.benchmarks.harness.undefined import none_if_undefined
from mclst.runtime.click_types import PATH
from mclst.runtime.console import command
from mclst.runtime.errors import needs_extra
from mclst.sections.patients import PATIENT

if TYPE_CHECKING:
    import pandas as pd

HEADINGS = ("PCC (ACG)", "PCC (HEG)", "MSE", "MAE")


@click.command()
@click.argument("paths", metavar="SECTIONS...", type=PATH, nargs=-1, required=True)
@click.option(
    "--sections", "section_names", help="Sections to use: names and ranges, such as A2-G3.  [default: all]"
)
@click.option(
    "--leave-out",
    type=click.Choice(("section", "patient")),
    help="Unit of a fold; section, as published, keeps the patient's other sections in training.  "
    "[default: patient, if the names tell several]",
)
@click.option("--patient", default=PATIENT, help="Regular expression for the patient in a section's name.")
@click.option("--fold", "fold_names", multiple=True, help="Only this fold; repeatable.  [default: all]")
@click.option("--train", "train_options", help='A system; options of mclst-train, such as "--epochs 20".')
@click.option(
    "--fit",
    "fit_options",
    help='A head instead of a system; options of mclst-fit, such as "--encoder uni --weights FILE".',
)
@click.option(
    "--sweep",
    help="A setting and its values, such as k=50,200,800. One training for all values: k, distance, rank, "
    "weighting, normalization, context, precision of the export. One training per value: positions, encoder, "
    "lambda. Of a head, with one encoding: head, alpha, k, context.",
)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, help="Folds at once; each training is a process of its own."
)
@click.option(
    "--work", type=PATH, default=Path("mclst-accuracy"), help="Folder of finished folds, to resume from."
)
@result_options(json="Write table and folds; - for stdout.")
@command
def accuracy(
    paths: tuple[Path, ...],
    section_names: str | None,
    leave_out: str | None,
    patient: str,
    fold_names: tuple[str, ...],
    train_options: str | None,
    fit_options: str | None,
    sweep: str | None,
    jobs: int,
    work: Path,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Cross-validate a system or a head: leave a section or patient out, score it, and vary one setting.

    Scores are those of `mclst-eval`, computed with the network itself; a sweep over the precision uses
    exported graphs. A head's penalty and neighbors are chosen without the sections left out. Re-run the same
    command to resume an interrupted run.
    """
    if train_options is not None and fit_options is not None:
        raise click.UsageError("give --train for a system or --fit for a head, not both")
    words = (train_options or fit_options or "").replace("=", " ").split()
    result_files.check([Path(word) for word in words])
    with needs_extra("export,cpu"):
        from mclst.benchmarks.accuracy.folds import summarize
        from mclst.benchmarks.accuracy.requested import run_heads, run_system
    request = Request(
        paths, section_names, leave_out, patient, fold_names, sweep, work.absolute(), jobs, quiet
    )
    if fit_options is None:
        result = run_system(request, train_options or "")
    else:
        result = run_heads(request, fit_options)
    table = summarize(result.rows)
    label = "" if sweep is None else sweep.partition("=")[0]
    if not quiet:
        _show(table, label)
    if result.leave_out == "section":
        request.say(
            "  Note: training saw other sections of the same patient; --leave-out patient keeps them out"
        )
    document: dict[str, Any] = {
        "leave_out": result.leave_out,
        "sweep": label or None,
        **result.record,
        "table": none_if_undefined(table.to_dict(orient="records")),
        "folds": none_if_undefined(result.rows.to_dict(orient="records")),
    }
    result_files.publish(document)


def _show(table: pd.DataFrame, label: str) -> None:
    from mclst.benchmarks.harness.tables import show_table

    measures = [name for name in table.columns if f"{name}_sd" in table.columns]
    rows = []
    for row in table.to_dict(orient="records"):
        spreads = [f" ± {row[f'{m}_sd']:.4f}" if math.isfinite(row[f"{m}_sd"]) else "" for m in measures]
        cells = [f"{row[m]:.4f}{spread}" for m, spread in zip(measures, spreads, strict=True)]
        rows.append([str(row["value"]), str(row["folds"]), *cells])
    show_table("", (label, "folds", *HEADINGS), rows)
