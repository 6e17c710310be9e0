"""Command-line options of a training run, each system's published defaults, and the TrainConfig they give."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mclst.kernels.definition.spec import DISTANCES, RANKS, WEIGHTINGS
from mclst.runtime.click_types import PATH, AliasedOption, Finite, Numbers, add_options
from mclst.sections.normalization_names import NORMALIZATION_NAMES

if TYPE_CHECKING:
    from mclst.models.recipes.recipe import Recipe
    from mclst.training.settings import TrainConfig

NORMALIZATION = click.Choice(NORMALIZATION_NAMES)
PUBLISHED = ("densenet121", "resnet18", "resnet50", "resnet101", "vit_base_patch32_224")
"""Encoders of the published code, whose tensors have its names rather than those of a recipe."""
BLEEP: dict[str, Any] = {
    "encoder": "resnet50",
    "dropout": 0.1,
    "epochs": 4,
    "batch_size": 256,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "color_jitter": 0.0,
    "rotation": 0.0,
    "vertical_flip": True,
    "quarter_turns": True,
    "channels": "bgr",
    "pixel_range": "0-255",
    "k": 50,
    "distance": "l2",
    "weighting": "uniform",
    "input_normalization": "median-log1p",
    "expression_normalization": "median-log1p",
}
"""Published defaults of BLEEP that differ, from its command line, configuration and notebook (k)."""
ONLY_MCLSTEXP = (
    *("positions", "coordinates", "position_std", "depth", "heads", "head_dim", "context", "sentences"),
)
"""Options of the spot encoder, which BLEEP lacks."""
model_options = add_options(
    click.option(
        "--system",
        type=click.Choice(("mclstexp", "bleep")),
        default="mclstexp",
        help="Model to train; bleep has its own published defaults (see above).",
    ),
    click.option(
        "--encoder",
        default="densenet121",
        help="Image encoder: densenet121, resnet18/50/101, vit_base_patch32_224, a recipe such as uni or a "
        ".yaml file of your own, or a timm model.",
    ),
    click.option("--weights", type=PATH, help="Weights of a recipe's encoder: a file, or a folder with one."),
    click.option("--frozen/--trained", default=False, help="Whether a recipe's encoder keeps its weights."),
    click.option("--init", type=PATH, help="Initial weights of the image encoder or of a whole model."),
    click.option(
        "--positions",
        type=click.Choice(("learnable", "sinusoidal", "naive", "none")),
        default="learnable",
        help="Encoding of a spot's position.",
    ),
    click.option(
        "--coordinates",
        type=click.Choice(("array", "pixel")),
        default="array",
        help="Position of a spot: array x, y; or level-0 row, column, as in mclSTExp's Visium script.",
    ),
    click.option(
        "--position-std", type=float, default=1.0, help="Initial standard deviation of learned positions."
    ),
    click.option(
        "--lambda",
        "image_weight",
        type=Finite(0, 1),
        default=0.5,
        help="λ: λ·image loss + (1 - λ)·spot loss.",
    ),
    click.option("--temperature", type=float, default=1.0, help="Divides the similarities in the loss."),
    click.option(
        "--projection-dim",
        type=click.IntRange(1),
        default=256,
        help="Dimension of the shared embedding space.",
    ),
    click.option("--depth", type=click.IntRange(1), default=2, help="Blocks of the spot Transformer."),
    click.option(
        "--heads", type=click.IntRange(1), default=8, help="Attention heads of the spot Transformer."
    ),
    click.option("--head-dim", type=click.IntRange(1), default=64, help="Width of an attention head."),
    click.option("--dropout", type=Finite(0, 0.9), default=0.0, help="Dropout of the projections."),
    click.option("--epochs", type=click.IntRange(1), default=90, help="Passes over all spots."),
    click.option("--seconds", type=float, help="Stop after this long, even within an epoch."),
    click.option(
        "--batch-size",
        type=click.IntRange(2),
        default=128,
        help="Spots per step, which form one sentence.",
    ),
    click.option(
        "--optimizer",
        cls=AliasedOption,
        aliases=("--optimiser",),
        type=click.Choice(("adam", "adamw")),
        default="adam",
        help="adam couples weight decay to the gradient, adamw does not.",
    ),
    click.option("--learning-rate", type=float, default=1e-4, help="Initial learning rate."),
    click.option("--weight-decay", type=float, default=1e-3, help="Weight decay."),
    click.option(
        "--schedule",
        type=click.Choice(("constant", "cosine")),
        default="constant",
        help="Learning rate schedule.",
    ),
    click.option(
        "--color-jitter",
        cls=AliasedOption,
        aliases=("--colour-jitter",),
        type=float,
        default=0.5,
        help="Change brightness, contrast and saturation by a factor of 1 ± this.",
    ),
    click.option("--flip/--no-flip", default=True, help="Flip tiles horizontally at random."),
    click.option(
        "--vertical-flip/--no-vertical-flip", default=False, help="Flip tiles vertically at random."
    ),
    click.option(
        "--quarter-turns/--no-quarter-turns", default=False, help="Rotate by 0, 90, 180 or 270 degrees."
    ),
    click.option("--rotation", type=float, default=180.0, help="Rotate tiles by up to this angle, degrees."),
    click.option(
        "--channels",
        type=click.Choice(("rgb", "bgr")),
        default="rgb",
        help="Order of the color channels.",
    ),
    click.option(
        "--pixel-range",
        type=click.Choice(("0-1", "0-255")),
        default="0-1",
        help="Range of the encoder's input.",
    ),
    click.option("--mean", type=Numbers(float), default="0,0,0", help="Mean per channel, in that range."),
    click.option("--std", type=Numbers(float, 1e-6), default="1,1,1", help="Standard deviation per channel."),
    click.option("--tile-px", type=click.IntRange(8, 4096), default=224, help="Side of a tile, px."),
    click.option(
        "--tile-mpp", type=float, help="µm/px of the tiles.  [default: the recipe's, else level-0 pixels]"
    ),
    click.option("--mpp", type=Finite(0.05, 10), help="µm/px of level 0, if images do not give it."),
    click.option("--k", type=click.IntRange(1), default=200, help="Neighbors that the bundle averages."),
    click.option(
        "--rank", type=click.Choice(RANKS), default="cosine", help="Similarity that ranks the neighbors."
    ),
    click.option("--distance", type=click.Choice(DISTANCES), default="l1", help="Distance for the weights."),
    click.option(
        "--weighting",
        type=click.Choice(WEIGHTINGS),
        default="inverse-square",
        help="Weight as a function of distance.",
    ),
    click.option("--context", type=click.IntRange(1), default=32, help="Spots per sentence in the bank."),
    click.option(
        "--sentences",
        type=click.Choice(("file", "section")),
        default="file",
        help="Whether the bank's sentences cross section borders (file) or not (section).",
    ),
    click.option(
        "--input-normalization",
        cls=AliasedOption,
        aliases=("--input-normalisation",),
        type=NORMALIZATION,
        default="spot-wise",
        help="Normalization of the spot encoder's input.",
    ),
    click.option(
        "--expression-normalization",
        cls=AliasedOption,
        aliases=("--expression-normalisation",),
        type=NORMALIZATION,
        default="gene-wise",
        help="Normalization of the averaged expression.",
    ),
    click.option("--device", default="cpu", help="cpu, cuda or cuda:N."),
    click.option(
        "--precision",
        type=click.Choice(("fp32", "fp16", "bf16")),
        default="fp32",
        help="Precision of products.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, help="Random seed."),
)
"""Options of the model and its training."""


def resolve_options(context: click.Context) -> dict[str, Any]:
    """Options of the command, with the chosen system's defaults.

    Raises click.UsageError if an option does not apply to the system.
    """
    options = dict(context.params)
    explicit = {name for name in options if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    options["recipe"] = _recipe(options)
    if options["recipe"] is not None:
        of_recipe = preprocessing_of(options["recipe"])
        options |= {name: value for name, value in of_recipe.items() if name not in explicit}
        explicit |= of_recipe.keys()
        if "tile_mpp" not in explicit:
            options["tile_mpp"] = options["recipe"].mpp_of(options["tile_px"])
    if options["system"] == "mclstexp":
        return options
    if unused := [name for name in ONLY_MCLSTEXP if name in explicit]:
        raise click.UsageError(
            f"--{unused[0].replace('_', '-')} is of mclSTExp's spot encoder, which bleep lacks; omit it"
        )
    options |= {name: value for name, value in BLEEP.items() if name not in explicit}
    return options | {"positions": "none"}


def preprocessing_of(recipe: Recipe) -> dict[str, Any]:
    """Options that a recipe sets where the user does not."""
    return {
        "channels": "rgb",
        "pixel_range": "0-1",
        "mean": recipe.mean,
        "std": recipe.std,
        "tile_px": recipe.tile_px,
    }


def _recipe(options: dict[str, Any]) -> Recipe | None:
    """The recipe that --encoder names; click.UsageError if an option needs one and there is none."""
    from mclst.models.recipes.find import RECIPES, find_recipe

    name = str(options["encoder"])
    if name not in PUBLISHED and (name in RECIPES or name.endswith((".yaml", ".yml"))):
        if options["init"] is not None and options["weights"] is not None:
            raise click.UsageError("--init and --weights are both given; give one")
        if options["frozen"] and options["weights"] is None:
            raise click.UsageError("--frozen keeps random weights without --weights; give them")
        return find_recipe(name)
    for option in ("weights", "frozen"):
        if options[option]:
            raise click.UsageError(
                f"--{option} is for encoders with a recipe, and {name} has none here; "
                "give --init, or another --encoder"
            )
    return None


def build_config(options: dict[str, Any]) -> TrainConfig:
    """Build the TrainConfig of the command's options; click.UsageError if they contradict each other."""
    from mclst.models.encoders import known_encoder
    from mclst.runtime.bundle.manifest import Normalization
    from mclst.training.settings import Augmentation, TrainConfig, valid_settings

    if options.get("recipe") is None and not known_encoder(options["encoder"]):
        raise click.UsageError(
            f"--encoder {options['encoder']} is no image encoder of mclst or of this timm; see --help"
        )
    try:
        settings = valid_settings(
            {
                "heads": options["heads"],
                "tile": {"size_px": options["tile_px"], "mpp": options["tile_mpp"]},
                "preprocessing": {
                    **{name: options[name] for name in ("channels", "pixel_range")},
                    **{name: list(options[name]) for name in ("mean", "std")},
                },
                "retrieval": {
                    **{name: options[name] for name in ("k", "rank", "distance", "weighting")},
                    "temperature": 1.0,
                },
                "context": {
                    "spots": options["context"],
                    "sentences": options["sentences"],
                    "positions": "none" if options["positions"] == "none" else options["coordinates"],
                },
                "normalization": Normalization.of(
                    options["input_normalization"], options["expression_normalization"]
                ).model_dump(),
            }
        )
        fields = {field.name for field in dataclasses.fields(TrainConfig)} & options.keys()
        return TrainConfig(
            settings,
            augmentation=Augmentation(
                options["color_jitter"],
                options["flip"],
                options["rotation"],
                options["vertical_flip"],
                options["quarter_turns"],
            ),
            **{name: options[name] for name in fields},
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
