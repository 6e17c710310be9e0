"""What a training run is told, and what a checkpoint will say of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from mclst.runtime.bundle.manifest import Settings

Optimiser = Literal["adam", "adamw"]
Schedule = Literal["constant", "cosine"]
Positions = Literal["learnable", "sinusoidal", "naive", "none"]
Precision = Literal["fp32", "fp16", "bf16"]
SystemName = Literal["mclstexp", "bleep"]


@dataclass(frozen=True)
class Augmentation:
    """What is done to each training tile; the defaults are those of mclSTExp's HER2+ script.

    colour_jitter: brightness, contrast and saturation each change by a factor within 1 ± this, in random order.
    horizontal_flip: mirror every other tile, at random.
    vertical_flip: the same upside down. quarter_turns: turn by 0, 90, 180 or 270 degrees.
    rotation_deg: turn by an angle within ± this; corners that come into view are black.
    BLEEP and mclSTExp's Visium script flip both ways and take quarter turns, and leave colours and angles alone.
    """

    colour_jitter: float = 0.5
    horizontal_flip: bool = True
    rotation_deg: float = 180.0
    vertical_flip: bool = False
    quarter_turns: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.colour_jitter < 1 or not 0 <= self.rotation_deg <= 180:
            raise ValueError(
                f"colour_jitter is {self.colour_jitter} and rotation_deg {self.rotation_deg}; "
                "give 0 up to 1, and 0 to 180"
            )


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Defaults are the published mclSTExp settings for HER2+.

    system: whose network and loss: mclSTExp's, or BLEEP's, which has no spot encoder and knows no positions.
    settings: what the model's bundle will say of it: tile and preprocessing (which training applies), normalisation,
        retrieval, context, and the heads of the spot Transformer.
    encoder: a name of mclst.models.encoders.WIDTHS, or of timm.
    projection_dim: D, of the shared embedding space.
    head_dim, depth: of the spot Transformer.
    dropout: of the projection heads.
    temperature: τ, divides the similarities.
    image_weight: λ, the share of the tile-picks-spot cross-entropy in the loss; the spot side has 1 - λ.
    batch_size: pairs per step, which are also one Transformer sentence.
    epochs, seconds: training ends with whichever is reached first; None for no such limit.
    learning_rate, weight_decay, optimiser: `adam` couples the decay to the gradient (L2), `adamw` does not.
    schedule: of the learning rate, `constant` or `cosine` from learning_rate to 0 at the end of the run.
    positions: `learnable` tables as published, fixed `sinusoidal` ones, `naive` (proportional to the coordinate,
        in a learned direction), or `none`.
    position_std: standard deviation of learned positions before training; published 1, which drowns the expression
        where little data can teach the network otherwise.
    seed: the same seed, sections and settings give the same weights on one machine, unless `seconds` ends the run.
    precision: `fp16` and `bf16` are mixed precision: products in 16 bits, weights and sums in 32.
    device: as torch spells it.
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
    optimiser: Optimiser = "adam"
    schedule: Schedule = "constant"
    positions: Positions = "learnable"
    position_std: float = 1.0
    precision: Precision = "fp32"
    seed: int = 0
    device: str = "cpu"
    system: SystemName = "mclstexp"
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.epochs is None and self.seconds is None:
            raise ValueError("neither epochs nor seconds limits the training; give one of them")
        if (self.epochs is not None and self.epochs < 1) or (
            self.seconds is not None and not self.seconds > 0
        ):
            raise ValueError(f"epochs is {self.epochs} and seconds {self.seconds}; give numbers above 0")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; a contrastive loss needs 2 pairs or more")
        if not self.temperature > 0 or not 0 <= self.image_weight <= 1:
            raise ValueError(
                f"temperature is {self.temperature} and image_weight {self.image_weight}; "
                "give a temperature above 0 and a weight from 0 to 1"
            )
        if self.optimiser not in ("adam", "adamw"):
            raise ValueError(f"optimiser is {self.optimiser!r}; choose adam or adamw")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule is {self.schedule!r}; choose constant or cosine")
        if self.positions not in get_args(Positions):
            raise ValueError(
                f"positions is {self.positions!r}; choose one of {', '.join(get_args(Positions))}"
            )
        if self.system not in get_args(SystemName):
            raise ValueError(f"system is {self.system!r}; choose one of {', '.join(get_args(SystemName))}")
        if self.system == "bleep" and self.positions != "none":
            raise ValueError(f"positions is {self.positions!r}, and BLEEP knows none; give none")
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
        if not self.position_std >= 0:
            raise ValueError(f"position_std is {self.position_std}; give 0 or more")

    def record(self) -> dict[str, Any]:
        """How the model was trained, beside `settings`, as plain values: what a checkpoint keeps for people."""
        plain = asdict(self)
        del plain["settings"]
        return plain
