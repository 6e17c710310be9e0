"""The options that describe a training run, each system's published defaults, and the run they add up to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mclst.kernels.definition.spec import DISTANCES, RANKS, WEIGHTINGS
from mclst.runtime.console import Numbers
from mclst.sections.normalize import NORMALIZATIONS

if TYPE_CHECKING:
    from mclst.training.settings import TrainConfig

PATH = click.Path(path_type=Path)
NORMALISATION = click.Choice(tuple(NORMALIZATIONS))
BLEEP: dict[str, Any] = {
    "encoder": "resnet50",
    "dropout": 0.1,
    "epochs": 4,
    "batch_size": 256,
    "optimiser": "adamw",
    "learning_rate": 1e-3,
    "colour_jitter": 0.0,
    "rotation": 0.0,
    "vertical_flip": True,
    "quarter_turns": True,
    "channels": "bgr",
    "pixel_range": "0-255",
    "k": 50,
    "distance": "l2",
    "weighting": "uniform",
    "input_normalisation": "median-log1p",
    "expression_normalisation": "median-log1p",
}
"""BLEEP's published defaults, where they differ: its command line's and configuration's, and its notebook's k."""
ONLY_MCLSTEXP = (
    *("positions", "coordinates", "position_std", "depth", "heads", "head_dim", "context", "sentences"),
)
"""Options of the spot encoder, which BLEEP has not."""
OPTIONS = (
    click.option(
        "--system",
        type=click.Choice(("mclstexp", "bleep")),
        default="mclstexp",
        help="What to train; bleep has its own published defaults (above).",
    ),
    click.option(
        "--encoder",
        default="densenet121",
        help="Image encoder: densenet121, resnet18, resnet50, resnet101, vit_base_patch32_224 or any name of timm.",
    ),
    click.option("--init", type=PATH, help="Starting weights of the image encoder, or of a whole model."),
    click.option(
        "--positions",
        type=click.Choice(("learnable", "sinusoidal", "naive", "none")),
        default="learnable",
        help="How a spot's place is encoded.",
    ),
    click.option(
        "--coordinates",
        type=click.Choice(("array", "pixel")),
        default="array",
        help="What a place is: array x, y; or level-0 row, column, as in mclSTExp's Visium script.",
    ),
    click.option("--position-std", type=float, default=1.0, help="Spread of learned positions at the start."),
    click.option(
        "--lambda",
        "image_weight",
        type=click.FloatRange(0, 1),
        default=0.5,
        help="λ: λ·image loss + (1 - λ)·spot loss.",
    ),
    click.option("--temperature", type=float, default=1.0, help="Divides the similarities in the loss."),
    click.option(
        "--projection-dim", type=click.IntRange(1), default=256, help="Of the shared embedding space."
    ),
    click.option("--depth", type=click.IntRange(1), default=2, help="Blocks of the spot Transformer."),
    click.option(
        "--heads", type=click.IntRange(1), default=8, help="Attention heads of the spot Transformer."
    ),
    click.option("--head-dim", type=click.IntRange(1), default=64, help="Width of a head."),
    click.option("--dropout", type=click.FloatRange(0, 0.9), default=0.0, help="Of the projections."),
    click.option("--epochs", type=click.IntRange(1), default=90, help="Times through all spots."),
    click.option("--seconds", type=float, help="Stop after this long, even within an epoch."),
    click.option("--batch-size", type=click.IntRange(2), default=128, help="Spots in a step and a sentence."),
    click.option(
        "--optimiser", type=click.Choice(("adam", "adamw")), default="adam", help="Adam couples the decay."
    ),
    click.option("--learning-rate", type=float, default=1e-4),
    click.option("--weight-decay", type=float, default=1e-3),
    click.option(
        "--schedule", type=click.Choice(("constant", "cosine")), default="constant", help="Of the rate."
    ),
    click.option(
        "--colour-jitter", type=float, default=0.5, help="Brightness, contrast, saturation: 1 ± this."
    ),
    click.option("--flip/--no-flip", default=True, help="Mirror every other tile."),
    click.option("--vertical-flip/--no-vertical-flip", default=False, help="Turn every other upside down."),
    click.option(
        "--quarter-turns/--no-quarter-turns", default=False, help="Turn by 0, 90, 180 or 270 degrees."
    ),
    click.option("--rotation", type=float, default=180.0, help="Turn tiles by up to this, degrees."),
    click.option(
        "--channels", type=click.Choice(("rgb", "bgr")), default="rgb", help="Order of the colours."
    ),
    click.option(
        "--pixel-range", type=click.Choice(("0-1", "0-255")), default="0-1", help="Of the encoder's input."
    ),
    click.option(
        "--mean", type=Numbers(float), default="0,0,0", help="Per channel, subtracted in that range."
    ),
    click.option("--std", type=Numbers(float, 1e-6), default="1,1,1", help="Per channel, divided by."),
    click.option("--tile-px", type=click.IntRange(8, 4096), default=224, help="Side of a tile."),
    click.option("--tile-mpp", type=float, help="µm/px of the tiles.  [default: level-0 pixels as they are]"),
    click.option("--mpp", type=click.FloatRange(0.05, 10), help="µm/px of level 0, where images do not say."),
    click.option("--k", type=click.IntRange(1), default=200, help="Neighbours that the bundle will average."),
    click.option("--rank", type=click.Choice(RANKS), default="cosine", help="What chooses the neighbours."),
    click.option(
        "--distance", type=click.Choice(DISTANCES), default="l1", help="What the weights are made of."
    ),
    click.option(
        "--weighting", type=click.Choice(WEIGHTINGS), default="inverse-square", help="Distance to weight."
    ),
    click.option("--context", type=click.IntRange(1), default=32, help="Spots per sentence in the bank."),
    click.option(
        "--sentences",
        type=click.Choice(("file", "section")),
        default="file",
        help="Whether the bank's sentences run on over section borders.",
    ),
    click.option(
        "--input-normalisation", type=NORMALISATION, default="spot-wise", help="Of the encoder's input."
    ),
    click.option(
        "--expression-normalisation", type=NORMALISATION, default="gene-wise", help="Of what is averaged."
    ),
    click.option("--device", default="cpu", help="cpu, cuda or cuda:N."),
    click.option(
        "--precision", type=click.Choice(("fp32", "fp16", "bf16")), default="fp32", help="Of products."
    ),
    click.option("--seed", type=click.IntRange(0), default=0),
)
"""What the model is, and how it is trained."""


def model_options(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command with OPTIONS, in their order."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def settled(context: click.Context) -> dict[str, Any]:
    """The command's options, defaults of the chosen system in place of those that were not given.

    Raises click.UsageError where one was given that the system has no use for.
    """
    options = dict(context.params)
    if options["system"] == "mclstexp":
        return options
    given = {name for name in options if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    if odd := [name for name in ONLY_MCLSTEXP if name in given]:
        raise click.UsageError(
            f"--{odd[0].replace('_', '-')} is of mclSTExp's spot encoder, which bleep has not; leave it out"
        )
    options |= {name: value for name, value in BLEEP.items() if name not in given}
    return options | {"positions": "none"}


def config_of(options: dict[str, Any]) -> TrainConfig:
    """The run that the command's options describe; click.UsageError where they contradict one another."""
    from mclst.models.encoders import known_encoder
    from mclst.runtime.bundle.manifest import (
        Context,
        Normalisation,
        Preprocessing,
        Retrieval,
        Settings,
        Tile,
    )
    from mclst.training.settings import Augmentation, TrainConfig

    if not known_encoder(options["encoder"]):
        raise click.UsageError(
            f"--encoder {options['encoder']} is no image encoder of mclst or of this timm; see --help"
        )
    try:
        settings = Settings(
            heads=options["heads"],
            tile=Tile(size_px=options["tile_px"], mpp=options["tile_mpp"]),
            preprocessing=Preprocessing(
                channels=options["channels"],
                pixel_range=options["pixel_range"],
                mean=tuple(options["mean"]),
                std=tuple(options["std"]),
            ),
            retrieval=Retrieval(
                **{name: options[name] for name in ("k", "rank", "distance", "weighting")}, temperature=1.0
            ),
            context=Context(
                spots=options["context"],
                sentences=options["sentences"],
                positions="none" if options["positions"] == "none" else options["coordinates"],
            ),
            normalisation=Normalisation(
                input=options["input_normalisation"], expression=options["expression_normalisation"]
            ),
        )
        own = {name.name for name in dataclasses.fields(TrainConfig)} & options.keys()
        return TrainConfig(
            settings,
            augmentation=Augmentation(
                options["colour_jitter"],
                options["flip"],
                options["rotation"],
                options["vertical_flip"],
                options["quarter_turns"],
            ),
            **{name: options[name] for name in own},
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
