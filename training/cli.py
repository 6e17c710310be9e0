"""`mclst-train`: options → run → a checkpoint that mclst-export takes as it is."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.runtime.atomic import check_apart, check_writable
from mclst.runtime.console import check_json, command, progress, publish_json, say, table
from mclst.runtime.errors import ResourceError
from mclst.training.options import config_of, model_options, settled

if TYPE_CHECKING:
    from mclst.training.data import TrainingSection
    from mclst.training.run import Outcome
    from mclst.training.settings import TrainConfig

PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("paths", metavar="SECTIONS...", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, default=Path("model.pt"), help="The checkpoint to write.")
@click.option("--sections", help="Those to train on: names and ranges, such as A2-G3,H1.  [default: all]")
@click.option("--hold-out", multiple=True, help="Section not to train on; repeatable.")
@click.option(
    "--validation", multiple=True, help="Section to score after epochs, not trained on; repeatable."
)
@click.option("--validate-every", type=click.IntRange(1), default=1, help="Epochs between two validations.")
@click.option(
    "--genes", type=PATH, help="The genes to model: .txt, .tsv or .npy.  [default: genes.txt there]"
)
@model_options
@click.option("--workers", type=click.IntRange(1, 256), default=2, help="Threads that read tiles.")
@click.option(
    "--published-layout", is_flag=True, help="Also the plain state dict, as the published code loads it."
)
@click.option("--restart", is_flag=True, help="Begin anew where a stopped run could go on.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint of that name.")
@click.option(
    "--json", "json_path", type=PATH, help="Write settings, losses and scores as JSON; - for stdout."
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
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
    **_: Any,
) -> None:
    """Train mclSTExp or BLEEP on measured SECTIONS and write a checkpoint.

    SECTIONS are folders or files of legacy ST, Space Ranger or .h5ad sections, each with its H&E image. The checkpoint
    brings settings, genes and the training sections along, so that mclst-export --ckpt needs nothing else. A run that
    was stopped goes on after its last whole epoch when the same command is given again. The defaults are those of
    mclSTExp's published HER2+ script; nothing is downloaded, so give ImageNet weights, which it starts from, with --init.

    --system bleep: resnet50, dropout 0.1, 4 epochs of batches of 256, adamw at 1e-3, tiles flipped both ways and turned by
    quarters, BGR from 0 to 255, median-log1p expression, plain mean of the 50 nearest.
    """
    options = settled(context)
    overwrite = options["overwrite"]
    check_writable(out, overwrite=overwrite)
    published = out.with_suffix(".state_dict.pt") if options["published_layout"] else None
    if published is not None:
        check_writable(published, overwrite=overwrite)
    inputs, outputs = (*paths, options["init"], options["genes"]), (out, published)
    check_apart(outputs, inputs)
    check_json(json_path, overwrite=overwrite, inputs=inputs, outputs=outputs)
    try:
        from mclst.training.run import run
    except ImportError as error:
        raise ResourceError(f"{error.name} is not installed; install mclst[export,cpu]") from error
    tell = functools.partial(say, quiet=quiet)
    config = config_of(options)
    sections, held_out = _read(paths, config, options, quiet=quiet)
    tell(
        f"{sum(len(s.spot) for s in sections):,} spots of {', '.join(s.name for s in sections)}; "
        f"{len(sections[0].genes)} genes; {config.encoder}"
    )
    for section in [*sections, *held_out]:
        if section.left_out:
            spot, reason = section.left_out[0]
            tell(
                f"Note: {len(section.left_out)} spots of {section.name} are left out (first {spot}: {reason})"
            )
    outcome = run(
        sections,
        config,
        out,
        held_out=held_out,
        validate_every=options["validate_every"],
        init=options["init"],
        published=published,
        restart=options["restart"],
        say=tell,
        progress=functools.partial(progress, quiet=quiet),
    )
    _say_outcome(outcome, quiet=quiet)
    if json_path is not None:
        publish_json(json_path, _as_json(outcome, held_out))
    if json_path is None or str(json_path) != "-":
        click.echo(str(outcome.checkpoint))


def _read(
    paths: tuple[Path, ...], config: TrainConfig, options: dict[str, Any], *, quiet: bool
) -> tuple[list[TrainingSection], list[TrainingSection]]:
    from mclst.training.sources import find_all, part, read_all, read_genes

    sources, held = part(find_all(paths), options["sections"], options["hold_out"], options["validation"])
    with progress("sections", len(sources) + len(held), quiet=quiet) as advance:
        reader = functools.partial(
            read_all,
            tile=config.settings.tile,
            workers=options["workers"],
            slide_mpp=options["mpp"],
            placed_on_array=config.settings.context.positions == "array",
            advance=advance,
        )
        sections = reader(sources, lambda first: read_genes(paths, options["genes"], first))
        return sections, reader(held, lambda first: sections[0].genes)


def _say_outcome(outcome: Outcome, *, quiet: bool) -> None:
    trained = outcome.trained
    rows = [
        ("loss", f"{trained.losses[0]:.3f} → {trained.losses[-1]:.3f}, chance {outcome.chance:.3f}"),
        ("steps", f"{trained.steps:,} in {trained.seconds:,.0f} s"),
        ("checkpoint", outcome.checkpoint),
    ]
    if outcome.published is not None:
        rows.append(("state dict", outcome.published))
    table(rows, quiet=quiet)


def _as_json(outcome: Outcome, held_out: list[TrainingSection]) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    measures = ("pcc_acg", "pcc_heg", "mse", "mae")
    trained = outcome.trained
    return {
        "checkpoint": str(outcome.checkpoint),
        "published_layout": None if outcome.published is None else str(outcome.published),
        "settings": trained.config.settings.model_dump(mode="json"),
        "training": trained.config.record(),
        "sections": {section.name: len(section.spot) for section in trained.sections},
        "genes": len(trained.genes),
        "losses": list(trained.losses),
        "chance": outcome.chance,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 2),
        "started_after_epoch": outcome.started_at,
        "validation": [
            {
                "epoch": epoch,
                **{
                    section.name: {name: number(getattr(found, name)) for name in measures}
                    for section, found in zip(held_out, scores, strict=True)
                },
            }
            for epoch, scores in outcome.validation
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
