"""`mclst-bench accuracy`."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.benchmarks.harness.options import PATH, ResultFiles, result_options
from mclst.runtime.console import command, progress, say
from mclst.runtime.errors import OutputError, ResourceError
from mclst.sections.patients import PATIENT, known_patients

if TYPE_CHECKING:
    import pandas as pd

    from mclst.training.data import TrainingSection
    from mclst.training.settings import TrainConfig

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
@click.option(
    "--sweep",
    help="A setting and its values, such as k=50,200,800. One training for all values: k, distance, rank, "
    "weighting, normalization, context, precision of the export. "
    "One training per value: positions, encoder, lambda.",
)
@click.option("--train", "train_options", default="", help='Options of mclst-train, such as "--epochs 20".')
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
    sweep: str | None,
    train_options: str,
    work: Path,
    result_files: ResultFiles,
    quiet: bool,
) -> None:
    """Cross-validate a training run: leave a section or patient out, score it, and vary one setting.

    Scores are those of `mclst-eval`, computed with the network itself; a sweep over the precision uses
    exported graphs. Re-run the same command to resume an interrupted run.
    """
    result_files.check(paths)
    try:
        from mclst.benchmarks.accuracy import cross_validation as cv
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[export,cpu]") from error
    try:
        parsed = None if sweep is None else cv.parse_sweep(sweep)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    config, sections = _read(paths, section_names, train_options, parsed, quiet=quiet)
    names = [section.name for section in sections]
    if leave_out is None:
        known = known_patients(names, None if patient == PATIENT else patient)
        apart = len(known) == len(names) and len(set(known.values())) > 1
        leave_out = "patient" if apart else "section"
        say(f"  leaving one {leave_out} out; --leave-out decides", quiet=quiet)
    folds = cv.make_folds(names, leave_out, patient)
    if unknown := set(fold_names) - {fold.name for fold in folds}:
        raise click.UsageError(f"--fold {min(unknown)} is none of {', '.join(fold.name for fold in folds)}")
    folds = [fold for fold in folds if not fold_names or fold.name in fold_names]
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{work} cannot be created ({error.strerror}); choose another --work") from error
    rows = cv.cross_validate(sections, folds, config, parsed, work, lambda text: say(text, quiet=quiet))
    table = cv.summarize(rows)
    label = parsed[0] if parsed else ""
    _show(table, label, quiet=quiet)
    if leave_out == "section":
        say(
            "  Note: training saw other sections of the same patient; --leave-out patient keeps them out",
            quiet=quiet,
        )
    document: dict[str, Any] = {
        "leave_out": leave_out,
        "sweep": label or None,
        "training": config.record(),
        "settings": config.settings.model_dump(mode="json"),
        "table": _records(table),
        "folds": _records(rows),
    }
    result_files.publish(document)


def _read(
    paths: tuple[Path, ...],
    names: str | None,
    train_options: str,
    sweep: tuple[str, list[Any]] | None,
    *,
    quiet: bool,
) -> tuple[TrainConfig, list[TrainingSection]]:
    from mclst.benchmarks.accuracy.cross_validation import with_setting
    from mclst.training.cli import main as train_command
    from mclst.training.options import build_config, resolve_options
    from mclst.training.sources import find_all_sections, read_genes, read_training_sections, split_sections

    context = train_command.make_context("mclst-train", [*map(str, paths), *shlex.split(train_options)])
    options = resolve_options(context)
    config = build_config(options)
    if sweep is not None:
        for value in sweep[1]:
            try:
                with_setting(config, sweep[0], value)
            except ValueError as error:
                raise click.UsageError(f"--sweep {sweep[0]}={value}: {str(error).splitlines()[0]}") from error
    sources, _ = split_sections(
        find_all_sections(paths), names or options["sections"], options["hold_out"], ()
    )
    needs_array = config.settings.context.positions == "array" or (
        sweep is not None and sweep[0] == "positions"
    )
    with progress("sections", len(sources), quiet=quiet) as advance:
        sections = read_training_sections(
            sources,
            lambda first: read_genes(paths, options["genes"], first),
            config.settings.tile,
            workers=options["workers"],
            slide_mpp=options["mpp"],
            needs_array=needs_array,
            advance=advance,
        )
    return config, sections


def _show(table: pd.DataFrame, label: str, *, quiet: bool) -> None:
    measures = [name for name in table.columns if f"{name}_sd" in table.columns]
    lines = [[label, "folds", *HEADINGS]]
    for row in table.to_dict(orient="records"):
        cells = [
            f"{row[m]:.4f}" + (f" ± {row[f'{m}_sd']:.4f}" if math.isfinite(row[f"{m}_sd"]) else "")
            for m in measures
        ]
        lines.append([str(row["value"]), str(row["folds"]), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        say(
            "  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip(),
            quiet=quiet,
        )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            str(name): None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in frame.to_dict(orient="records")
    ]
