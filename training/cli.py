"""`mclst-train`: train a model and write a checkpoint for mclst-export."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.runtime.click_types import PATH, SETTINGS
from mclst.runtime.console import check_outputs, command, progress, publish_result, say, table
from mclst.runtime.errors import needs_extra
from mclst.runtime.section_options import SectionFiles, section_options
from mclst.training.options import build_config, model_options, resolve_options

if TYPE_CHECKING:
    from mclst.training.data import TrainingSection
    from mclst.training.run import TrainingResult
    from mclst.training.settings import TrainConfig


@click.command(context_settings=SETTINGS)
@click.argument("paths", metavar="SECTIONS...", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, default=Path("model.pt"), help="The checkpoint to write.")
@click.option("--sections", help="Sections to train on: names and ranges, such as A2-G3,H1.  [default: all]")
@click.option("--hold-out", multiple=True, help="Section to exclude; repeatable.")
@click.option(
    "--validation", multiple=True, help="Section to score between epochs, not trained on; repeatable."
)
@click.option("--validate-every", type=click.IntRange(1), default=1, help="Epochs between validations.")
@click.option(
    "--genes",
    type=PATH,
    help="Genes of the model: .txt, .tsv or .npy.  [default: genes.txt in SECTIONS, else all]",
)
@section_options
@model_options
@click.option("--workers", type=click.IntRange(1, 256), default=2, help="Threads that read tiles.")
@click.option(
    "--published-layout", is_flag=True, help="Also write the state dict that the published code loads."
)
@click.option("--restart", is_flag=True, help="Start over instead of resuming an interrupted run.")
@click.option("--overwrite", is_flag=True, help="Replace an existing checkpoint.")
@click.option(
    "--json", "json_path", type=PATH, help="Write settings, losses and scores as JSON; - for stdout."
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.version_option(package_name="mclst")
@click.pass_context
@command
def main(
    context: click.Context,
    /,
    paths: tuple[Path, ...],
    out: Path,
    json_path: Path | None,
    quiet: bool,
    section_files: SectionFiles,
    **_: Any,
) -> None:
    """Train mclSTExp or BLEEP on measured SECTIONS and write a checkpoint.

    SECTIONS are legacy ST, Space Ranger, Visium HD, Xenium, HEST, SpatialData or .h5ad sections, or folders
    of them, each with its H&E slide: a file of the section's name beside it, or --image. The checkpoint
    includes settings, genes and the training sections, so mclst-export --ckpt needs nothing else. Re-run the
    same command to resume an interrupted run after its last complete epoch. The defaults are those of
    mclSTExp's published HER2+ script, which starts from ImageNet weights; mclst downloads nothing, so pass
    them with --init.

    --system bleep: resnet50, dropout 0.1, 4 epochs of batches of 256, adamw at 1e-3, both flips and quarter
    turns, BGR from 0 to 255, median-log1p expression, plain mean of the 50 nearest.
    """
    given = context.params
    published = out.with_suffix(".state_dict.pt") if given["published_layout"] else None
    check_outputs((out, published), json_path, overwrite=given["overwrite"], inputs=section_files.paths)
    options = resolve_options(context)
    with needs_extra("export,cpu"):
        from mclst.training.contrastive import open_device
        from mclst.training.pretrained_weights import StartingWeights
        from mclst.training.run import run_training
    log = functools.partial(say, quiet=quiet)
    config = build_config(options)
    # Refused before tiles are read, which may take minutes.
    open_device(config.device)
    StartingWeights(config.encoder, config.recipe, options["init"], options["weights"]).check()
    sections, held_out = _read(paths, section_files, config, options, quiet=quiet)
    log(
        f"{sum(len(s.spot) for s in sections):,} spots of {', '.join(s.name for s in sections)}; "
        f"{len(sections[0].genes)} genes; {config.encoder}"
    )
    for section in [*sections, *held_out]:
        if section.skipped:
            spot, reason = section.skipped[0]
            log(f"Note: {len(section.skipped)} spots of {section.name} are skipped (first {spot}: {reason})")
        for note in section.notes:
            log(f"Note: {note}")
    result = run_training(
        sections,
        config,
        out,
        held_out=held_out,
        validate_every=options["validate_every"],
        init=options["init"],
        weights=options["weights"],
        published=published,
        restart=options["restart"],
        say=log,
        progress=functools.partial(progress, quiet=quiet),
    )
    _print_summary(result, quiet=quiet)
    publish_result(json_path, lambda: _as_json(result, held_out), result.checkpoint)


def _read(
    paths: tuple[Path, ...],
    files: SectionFiles,
    config: TrainConfig,
    options: dict[str, Any],
    *,
    quiet: bool,
) -> tuple[list[TrainingSection], list[TrainingSection]]:
    from mclst.training.sources import find_all_sections, read_genes, read_training_sections, split_sections

    sources, held_out = split_sections(
        find_all_sections(paths, files), options["sections"], options["hold_out"], options["validation"]
    )
    log = functools.partial(say, quiet=quiet)
    with progress("sections", len(sources) + len(held_out), quiet=quiet) as advance:
        reader = functools.partial(
            read_training_sections,
            tile=config.settings.tile,
            workers=options["workers"],
            slide_mpp=options["mpp"],
            needs_array=config.settings.context.positions == "array",
            advance=advance,
        )
        sections = reader(sources, lambda first: read_genes(paths, options["genes"], first, log))
        return sections, reader(held_out, lambda first: sections[0].genes)


def _print_summary(result: TrainingResult, *, quiet: bool) -> None:
    trained = result.trained
    rows = [
        ("loss", f"{trained.losses[0]:.3f} → {trained.losses[-1]:.3f}, chance {result.chance:.3f}"),
        ("steps", f"{trained.steps:,} in {trained.seconds:,.0f} s"),
        ("checkpoint", result.checkpoint),
    ]
    if result.published is not None:
        rows.append(("state dict", result.published))
    table(rows, quiet=quiet)


def _as_json(result: TrainingResult, held_out: list[TrainingSection]) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    measures = ("pcc_acg", "pcc_heg", "mse", "mae")
    trained = result.trained
    return {
        "checkpoint": str(result.checkpoint),
        "published_layout": None if result.published is None else str(result.published),
        "settings": trained.config.settings.model_dump(mode="json"),
        "training": trained.config.record(),
        "sections": {section.name: len(section.spot) for section in trained.sections},
        "genes": len(trained.genes),
        "losses": list(trained.losses),
        "chance": result.chance,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 2),
        "started_after_epoch": result.resumed_after,
        "validation": [
            {
                "epoch": epoch,
                **{
                    section.name: {name: number(getattr(score, name)) for name in measures}
                    for section, score in zip(held_out, scores, strict=True)
                },
            }
            for epoch, scores in result.validation
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
