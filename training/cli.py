"""`mclst-train`: options → run → a checkpoint that mclst-export takes as it is."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mclst.kernels.spec import DISTANCES, RANKS, WEIGHTINGS
from mclst.runtime.command import check_json, command, progress, publish_json, say, table
from mclst.runtime.errors import ResourceError
from mclst.runtime.publish import check_apart, check_writable
from mclst.sections.normalise import NORMALISATIONS

if TYPE_CHECKING:
    from mclst.training.data import TrainingSection
    from mclst.training.run import Outcome
    from mclst.training.settings import TrainConfig

PATH = click.Path(path_type=Path)
NORMALISATION = click.Choice(tuple(NORMALISATIONS))


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
@click.option(
    "--encoder",
    default="densenet121",
    help="Image encoder: densenet121, resnet18, resnet50, resnet101, vit_base_patch32_224 or any name of timm.",
)
@click.option("--init", type=PATH, help="Starting weights of the image encoder, or of a whole model.")
@click.option(
    "--positions",
    type=click.Choice(("learnable", "sinusoidal", "naive", "none")),
    default="learnable",
    help="How a spot's place on the array is encoded.",
)
@click.option("--position-std", type=float, default=1.0, help="Spread of learned positions at the start.")
@click.option(
    "--lambda",
    "image_weight",
    type=click.FloatRange(0, 1),
    default=0.5,
    help="λ: λ·image loss + (1 - λ)·spot loss.",
)
@click.option("--temperature", type=float, default=1.0, help="Divides the similarities in the loss.")
@click.option("--projection-dim", type=click.IntRange(1), default=256, help="Of the shared embedding space.")
@click.option("--depth", type=click.IntRange(1), default=2, help="Blocks of the spot Transformer.")
@click.option("--heads", type=click.IntRange(1), default=8, help="Attention heads of the spot Transformer.")
@click.option("--head-dim", type=click.IntRange(1), default=64, help="Width of a head.")
@click.option("--dropout", type=click.FloatRange(0, 0.9), default=0.0, help="Of the projections.")
@click.option("--epochs", type=click.IntRange(1), default=90, help="Times through all spots.")
@click.option("--seconds", type=float, help="Stop after this long, even within an epoch.")
@click.option("--batch-size", type=click.IntRange(2), default=128, help="Spots in a step and a sentence.")
@click.option(
    "--optimiser", type=click.Choice(("adam", "adamw")), default="adam", help="Adam couples the decay."
)
@click.option("--learning-rate", type=float, default=1e-4)
@click.option("--weight-decay", type=float, default=1e-3)
@click.option(
    "--schedule", type=click.Choice(("constant", "cosine")), default="constant", help="Of the rate."
)
@click.option("--colour-jitter", type=float, default=0.5, help="Brightness, contrast, saturation: 1 ± this.")
@click.option("--flip/--no-flip", default=True, help="Mirror every other tile.")
@click.option("--rotation", type=float, default=180.0, help="Turn tiles by up to this, degrees.")
@click.option("--tile-px", type=click.IntRange(8, 4096), default=224, help="Side of a tile.")
@click.option("--tile-mpp", type=float, help="µm/px of the tiles.  [default: level-0 pixels as they are]")
@click.option("--mpp", type=click.FloatRange(0.05, 10), help="µm/px of level 0, where images do not say.")
@click.option("--k", type=click.IntRange(1), default=200, help="Neighbours that the bundle will average.")
@click.option("--rank", type=click.Choice(RANKS), default="cosine", help="What chooses the neighbours.")
@click.option("--distance", type=click.Choice(DISTANCES), default="l1", help="What the weights are made of.")
@click.option(
    "--weighting", type=click.Choice(WEIGHTINGS), default="inverse-square", help="Distance to weight."
)
@click.option("--context", type=click.IntRange(1), default=32, help="Spots per sentence in the bank.")
@click.option(
    "--sentences",
    type=click.Choice(("file", "section")),
    default="file",
    help="Whether the bank's sentences run on over section borders.",
)
@click.option(
    "--input-normalisation", type=NORMALISATION, default="spot-wise", help="Of the encoder's input."
)
@click.option(
    "--expression-normalisation", type=NORMALISATION, default="gene-wise", help="Of what is averaged."
)
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--precision", type=click.Choice(("fp32", "fp16", "bf16")), default="fp32", help="Of products.")
@click.option("--seed", type=click.IntRange(0), default=0)
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
@command
def main(paths: tuple[Path, ...], out: Path, json_path: Path | None, quiet: bool, **options: Any) -> None:
    """Train mclSTExp on measured SECTIONS and write a checkpoint.

    SECTIONS are folders or files of legacy ST, Space Ranger or .h5ad sections, each with its H&E image. The checkpoint
    brings settings, genes and the training sections along, so that mclst-export --ckpt needs nothing else. A run that
    was stopped goes on after its last whole epoch when the same command is given again. The defaults are those of the
    published HER2+ script; nothing is downloaded, so give ImageNet weights, which it starts from, with --init.
    """
    overwrite = options.pop("overwrite")
    check_writable(out, overwrite=overwrite)
    published = out.with_suffix(".state_dict.pt") if options.pop("published_layout") else None
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


def config_of(options: dict[str, Any]) -> TrainConfig:
    """The run that the command's options describe; click.UsageError where they contradict one another."""
    from mclst.models.encoders import known_encoder
    from mclst.runtime.manifest import Context, Normalisation, Retrieval, Settings, Tile
    from mclst.training.settings import Augmentation, TrainConfig

    if not known_encoder(options["encoder"]):
        raise click.UsageError(
            f"--encoder {options['encoder']} is no image encoder of mclst or of this timm; see --help"
        )
    try:
        settings = Settings(
            heads=options["heads"],
            tile=Tile(size_px=options["tile_px"], mpp=options["tile_mpp"]),
            retrieval=Retrieval(
                **{name: options[name] for name in ("k", "rank", "distance", "weighting")}, temperature=1.0
            ),
            context=Context(
                spots=options["context"],
                sentences=options["sentences"],
                positions="none" if options["positions"] == "none" else "array",
            ),
            normalisation=Normalisation(
                input=options["input_normalisation"], expression=options["expression_normalisation"]
            ),
        )
        own = {name.name for name in dataclasses.fields(TrainConfig)} & options.keys()
        return TrainConfig(
            settings,
            augmentation=Augmentation(options["colour_jitter"], options["flip"], options["rotation"]),
            **{name: options[name] for name in own},
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


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
            placed_on_array=config.positions != "none",
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
