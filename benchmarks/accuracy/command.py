"""`mclst-bench accuracy`: cross-validation of a training run, one table per call."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.benchmarks.harness.result_files import ResultFiles, result_options
from mclst.runtime.console import command, progress, say
from mclst.runtime.errors import OutputError, ResourceError

if TYPE_CHECKING:
    import pandas as pd

    from mclst.training.data import TrainingSection
    from mclst.training.settings import TrainConfig

PATH = click.Path(path_type=Path)
HEAD = ("PCC (ACG)", "PCC (HEG)", "MSE", "MAE")


@click.command("accuracy", context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("paths", metavar="SECTIONS...", type=PATH, nargs=-1, required=True)
@click.option("--sections", help="Those to take part: names and ranges, such as A2-G3.  [default: all]")
@click.option(
    "--leave-out",
    type=click.Choice(("section", "patient")),
    default="section",
    help="What a fold leaves out; section, as published, leaves its patient's others in training and bank.",
)
@click.option("--patient", default=r"^(.*?)\d+$", help="Where the patient stands in a section's name.")
@click.option("--fold", "chosen", multiple=True, help="Only this fold; repeatable.  [default: all]")
@click.option(
    "--sweep",
    help="One setting and its values, such as k=50,200,800: k, distance, rank, weighting, normalisation, context, "
    "precision of the export (one training for all), positions, encoder, lambda (one each).",
)
@click.option("--train", "train_options", default="", help='Options of mclst-train, such as "--epochs 20".')
@click.option(
    "--work", type=PATH, default=Path("mclst-accuracy"), help="Folder of finished folds, to go on from."
)
@result_options(json="Write table and folds; - for stdout.")
@command
def accuracy(
    paths: tuple[Path, ...],
    leave_out: str,
    patient: str,
    chosen: tuple[str, ...],
    sweep: str | None,
    train_options: str,
    work: Path,
    result_files: ResultFiles,
    quiet: bool,
    **options: Any,
) -> None:
    """Cross-validate: train without a section, or a patient, score what was left out, and vary one setting.

    Scores are those of `mclst-eval`, from the network itself rather than an exported bundle, but for a sweep over the
    export's precision. The same command goes on
    where it was stopped.
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
    config, sections = _read(paths, options["sections"], train_options, parsed, quiet=quiet)
    folds = cv.make_folds([section.name for section in sections], leave_out, patient)
    if unknown := set(chosen) - {fold.name for fold in folds}:
        raise click.UsageError(f"--fold {min(unknown)} is none of {', '.join(fold.name for fold in folds)}")
    folds = [fold for fold in folds if not chosen or fold.name in chosen]
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{work} cannot be made ({error.strerror}); choose another --work") from error
    rows = cv.cross_validate(sections, folds, config, parsed, work, lambda text: say(text, quiet=quiet))
    table = cv.summarize(rows)
    label = parsed[0] if parsed else ""
    _say_table(table, label, quiet=quiet)
    if leave_out == "section":
        say(
            "  Note: other sections of the same patient were trained on; --leave-out patient keeps them out",
            quiet=quiet,
        )
    content: dict[str, Any] = {
        "leave_out": leave_out,
        "sweep": label or None,
        "training": config.record(),
        "settings": config.settings.model_dump(mode="json"),
        "table": _records(table),
        "folds": _records(rows),
    }
    result_files.publish(lambda: content)


def _read(
    paths: tuple[Path, ...],
    chosen: str | None,
    train_options: str,
    sweep: tuple[str, list[Any]] | None,
    *,
    quiet: bool,
) -> tuple[TrainConfig, list[TrainingSection]]:
    from mclst.benchmarks.accuracy.cross_validation import changed
    from mclst.training.cli import main as train_command
    from mclst.training.options import config_of, settled
    from mclst.training.sources import find_all, part, read_all, read_genes

    context = train_command.make_context("mclst-train", [*map(str, paths), *shlex.split(train_options)])
    given = settled(context)
    config = config_of(given)
    if sweep is not None:
        for value in sweep[1]:
            try:
                changed(config, sweep[0], value)
            except ValueError as error:
                raise click.UsageError(f"--sweep {sweep[0]}={value}: {str(error).splitlines()[0]}") from error
    sources, _ = part(find_all(paths), chosen or given["sections"], given["hold_out"], ())
    by_array = config.settings.context.positions == "array" or (sweep is not None and sweep[0] == "positions")
    with progress("sections", len(sources), quiet=quiet) as advance:
        sections = read_all(
            sources,
            lambda first: read_genes(paths, given["genes"], first),
            config.settings.tile,
            workers=given["workers"],
            slide_mpp=given["mpp"],
            placed_on_array=by_array,
            advance=advance,
        )
    return config, sections


def _say_table(table: pd.DataFrame, label: str, *, quiet: bool) -> None:
    measures = [name for name in table.columns if f"{name}_sd" in table.columns]
    lines = [[label, "folds", *HEAD]]
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
