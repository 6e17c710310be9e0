"""Settings of a training run, as checkpoints record them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from pydantic import ValidationError

from mclst.models.recipes.recipe import Recipe
from mclst.runtime.bundle.manifest import Settings

Optimizer = Literal["adam", "adamw"]
Schedule = Literal["constant", "cosine"]
Positions = Literal["learnable", "sinusoidal", "naive", "none"]
Precision = Literal["fp32", "fp16", "bf16"]
SystemName = Literal["mclstexp", "bleep"]
MOST_SEED = (1 << 63) - 1
"""Torch takes no larger one."""


def valid_settings(fields: Mapping[str, Any]) -> Settings:
    """Settings of plain values, nested as in the manifest; ValueError, one sentence, names what is wrong."""
    try:
        # From JSON, in which strict fields take arrays as tuples.
        return Settings.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{name} is {first['input']!r}: {first['msg'].lower()}") from error


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training tiles; defaults are those of mclSTExp's HER2+ script.

    Attributes
    ----------
    color_jitter : float
        Brightness, contrast and saturation each change by a factor within 1 ± this, in random order.
    horizontal_flip, vertical_flip : bool
        Flip tiles with probability 1/2.
    rotation_deg : float
        Rotate by an angle within ± this; uncovered corners are black.
    quarter_turns : bool
        Rotate by 0, 90, 180 or 270 degrees.

    Notes
    -----
    BLEEP and mclSTExp's Visium script use both flips and quarter turns, without color jitter or other
    rotations.
    """

    color_jitter: float = 0.5
    horizontal_flip: bool = True
    rotation_deg: float = 180.0
    vertical_flip: bool = False
    quarter_turns: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.color_jitter < 1 or not 0 <= self.rotation_deg <= 180:
            raise ValueError(
                f"color_jitter is {self.color_jitter} and rotation_deg {self.rotation_deg}; "
                "give 0 up to 1, and 0 to 180"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a training run; defaults are the published mclSTExp settings for HER2+.

    Attributes
    ----------
    settings : Settings
        The bundle's settings: tile, preprocessing, normalization, retrieval, context and attention heads.
    encoder : str
        Image encoder: a name of mclst.models.encoders.WIDTHS or of timm.
    projection_dim : int
        D, dimension of the shared embedding space.
    head_dim, depth : int
        Width of a head and number of blocks of the spot Transformer.
    dropout : float
        Dropout of the projection heads.
    temperature : float
        τ, divides the similarities.
    image_weight : float
        λ, weight of the tile-picks-spot cross-entropy; the spot side has 1 - λ.
    batch_size : int
        Pairs per step, which also form one Transformer sentence.
    epochs, seconds : int and float, optional
        Training ends at the limit reached first; None means no limit.
    learning_rate, weight_decay : float
    optimizer : {"adam", "adamw"}
        `adam` couples the decay to the gradient (L2), `adamw` does not.
    schedule : {"constant", "cosine"}
        `cosine` lowers the learning rate to 0 at the end of the run.
    positions : {"learnable", "sinusoidal", "naive", "none"}
        Learned tables as published, fixed tables, proportional to the coordinate in a learned direction, or
        none.
    position_std : float
        Standard deviation of learned positions before training. The published 1 drowns the expression if
        there is little data.
    precision : {"fp32", "fp16", "bf16"}
        `fp16` and `bf16` are mixed precision: products in 16 bits, weights and sums in 32.
    seed : int
        The same seed, sections and settings give the same weights on one machine, unless `seconds` ends the
        run.
    device : str
        A torch device.
    system : {"mclstexp", "bleep"}
        Network and loss. BLEEP has no spot encoder and no positions.
    augmentation : Augmentation
    recipe : Recipe, optional
        Of the image encoder, if `encoder` names one.
    frozen : bool
        Whether the image encoder keeps its weights.
    """

    settings: Settings = field(default_factory=Settings)
    encoder: str = "densenet121"
    projection_dim: int = 256
    head_dim: int = 64
    depth: int = 2
    dropout: float = 0.0
    temperature: float = 1.0
    image_weight: float = 0.5
    batch_size: int = 128
    epochs: int | None = 90
    seconds: float | None = None
    learning_rate: float = 1e-4
    weight_decay: float = 1e-3
    optimizer: Optimizer = "adam"
    schedule: Schedule = "constant"
    positions: Positions = "learnable"
    position_std: float = 1.0
    precision: Precision = "fp32"
    seed: int = 0
    device: str = "cpu"
    system: SystemName = "mclstexp"
    augmentation: Augmentation = field(default_factory=Augmentation)
    recipe: Recipe | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.epochs is None and self.seconds is None:
            raise ValueError("neither epochs nor seconds limits the training; give one of them")
        if (self.epochs is not None and self.epochs < 1) or (
            self.seconds is not None and not self.seconds > 0
        ):
            raise ValueError(f"epochs is {self.epochs} and seconds {self.seconds}; give numbers above 0")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; a contrastive loss needs 2 pairs or more")
        if not 0 < self.temperature < math.inf or not 0 <= self.image_weight <= 1:
            raise ValueError(
                f"temperature is {self.temperature} and image_weight {self.image_weight}; "
                "give a finite temperature above 0 and a weight from 0 to 1"
            )
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"learning_rate is {self.learning_rate} and weight_decay {self.weight_decay}; "
                "give a rate above 0 and a decay of 0 or more"
            )
        if not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"seed is {self.seed}; give a number from 0 to {MOST_SEED}")
        if self.optimizer not in ("adam", "adamw"):
            raise ValueError(f"optimizer is {self.optimizer!r}; choose adam or adamw")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; choose constant or cosine")
        if self.positions not in get_args(Positions):
            raise ValueError(
                f"positions is {self.positions!r}; choose one of {', '.join(get_args(Positions))}"
            )
        if self.system not in get_args(SystemName):
            raise ValueError(f"system is {self.system!r}; choose one of {', '.join(get_args(SystemName))}")
        if self.system == "bleep" and self.positions != "none":
            raise ValueError(f"positions is {self.positions!r}, and BLEEP has none; give none")
        if (self.settings.context.positions == "none") != (self.positions == "none"):
            raise ValueError(
                f"positions is {self.positions!r} and the bundle's {self.settings.context.positions!r}; "
                "give none to both or to neither"
            )
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision is {self.precision!r}; choose one of {', '.join(get_args(Precision))}"
            )
        if self.precision == "fp16" and not self.device.startswith("cuda"):
            raise ValueError("precision fp16 needs a CUDA device; choose fp32 or bf16")
        if self.frozen and self.recipe is None:
            raise ValueError("frozen needs an encoder with a recipe, whose weights are read; give a recipe")
        if not 0 <= self.position_std < math.inf:
            raise ValueError(f"position_std is {self.position_std}; give a finite number of 0 or more")
        self.settings.retrieval.spec()

    def record(self) -> dict[str, Any]:
        """All fields but `settings` as plain values, for the checkpoint."""
        plain = asdict(self)
        del plain["settings"]
        if self.recipe is None:
            # As runs before recipes recorded it.
            del plain["recipe"], plain["frozen"]
        return plain
