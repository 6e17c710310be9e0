"""Contrastive training of spots and the tiles under them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mclst.models.bleep import Bleep
from mclst.models.encoders import take_tiles
from mclst.models.mclstexp import MclSTExp
from mclst.runtime.errors import InputError, ResourceError
from mclst.training.data import Pairs, TrainingSection, augment, encoder_input, make_pairs
from mclst.training.losses import LOSSES
from mclst.training.positions import prepare_positions, tabulate_positions
from mclst.training.section_digest import sections_sha256
from mclst.training.settings import TrainConfig

MIN_TABLE_ROWS = 128
"""Minimum rows of a position table: a Visium array has 128 columns."""
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
Network = MclSTExp | Bleep


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step: the loss before it and the training seconds after it."""

    epoch: int
    step: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class TrainedModel:
    """Result of training.

    Attributes
    ----------
    network : MclSTExp or Bleep
        On the CPU, in eval mode.
    config : TrainConfig
    genes : tuple of str
    sections : tuple of TrainingSection
    losses : tuple of float
        Mean loss of each epoch, the last one possibly incomplete.
    steps : int
        Optimizer steps.
    seconds : float
        Training time.
    """

    network: Network
    config: TrainConfig
    genes: tuple[str, ...]
    sections: tuple[TrainingSection, ...]
    losses: tuple[float, ...]
    steps: int
    seconds: float = field(compare=False)


StepCallback = Callable[[TrainingStep], None]


def train(
    sections: Sequence[TrainingSection],
    config: TrainConfig,
    on_step: StepCallback | None = None,
) -> TrainedModel:
    """Train a model from random weights.

    Parameters
    ----------
    sections : sequence of TrainingSection
        Sections with the same genes.
    config : TrainConfig
    on_step : callable, optional
        Called with a TrainingStep after each optimizer step.

    Returns
    -------
    TrainedModel

    Raises
    ------
    ReferenceDataError
        If the sections have fewer than two spots, or lack the coordinates that the config requires.
    ValueError
        If genes, array lengths or the tile size do not match.
    InputError
        If the encoder does not accept the tile size, or the loss becomes NaN.
    ResourceError
        If the device is not available.
    """
    training = Training(sections, config)
    while not training.finished:
        training.run_epoch(on_step)
    return training.finish()


class Training:
    """A training run, one epoch at a time; `state` saves it between epochs and `resume` continues it.

    A resumed run gives the same weights as an uninterrupted one, unless `config.seconds` ends it.

    network: in training mode.
    losses: mean loss of each epoch so far.
    steps, seconds: optimizer steps and training time so far.
    """

    def __init__(
        self,
        sections: Sequence[TrainingSection],
        config: TrainConfig,
        initialize: Callable[[Network], object] | None = None,
    ) -> None:
        """Pair up the sections and build the network; `initialize` may load weights into it.

        Raises ReferenceDataError and ValueError as `make_pairs` does; InputError if the image encoder does
        not accept tiles of this size; ResourceError if the device is not available.
        """
        self.sections, self.config = tuple(sections), config
        self.pairs = make_pairs(sections, config.settings)
        self.losses: list[float] = []
        self.steps, self.seconds, self._progress = 0, 0.0, 0.0
        self._cuda = open_device(config.device).type == "cuda"
        with self._own_rng():
            torch.manual_seed(config.seed)
            self.network = build_network(config, self.pairs)
            if initialize is not None:
                initialize(self.network)
            _check_tile(self.network, config)
            if config.frozen:
                self.network.image_encoder.requires_grad_(False)
            self.network.to(config.device).train()
            self._save_rng()
        optimizer = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        trainable = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.optimizer = optimizer(trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
        self._scaler = torch.amp.GradScaler("cuda", enabled=config.precision == "fp16")

    @cached_property
    def data_sha256(self) -> str:
        """SHA-256 of the sections: seconds for a large set, so it is computed once."""
        return sections_sha256(self.sections)

    @property
    def finished(self) -> bool:
        """Whether the limit of epochs or seconds is reached."""
        return self._progress >= 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a full epoch."""
        return batches_per_epoch(len(self.pairs), self.config.batch_size)

    def run_epoch(self, on_step: StepCallback | None = None) -> float:
        """Train on all pairs once, or until the seconds are over; returns the mean loss.

        Raises InputError if the loss becomes NaN or infinite.
        """
        started, before = time.monotonic(), self.seconds
        losses: list[float] = []
        with self._own_rng(self._rng_state):
            # Normalization statistics are weights too.
            self.network.image_encoder.train(not self.config.frozen)
            for rows in batches(len(self.pairs), self.config.batch_size):
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(self.config, self._progress)
                losses.append(self._step(rows))
                self.steps, self.seconds = self.steps + 1, before + time.monotonic() - started
                self._progress = progress_fraction(
                    self.config, self.steps, self.steps_per_epoch, self.seconds
                )
                if on_step is not None:
                    on_step(TrainingStep(len(self.losses), self.steps, losses[-1], self.seconds))
                if self.finished:
                    break
            self._save_rng()
        self.losses.append(sum(losses) / len(losses))
        return self.losses[-1]

    def finish(self) -> TrainedModel:
        """Move the model to the CPU and return it; training cannot continue afterwards."""
        network = self.network.to("cpu").eval()
        if isinstance(network, MclSTExp):
            tabulate_positions(network, table_rows(self.config, self.pairs))
        network.requires_grad_(False)
        losses = tuple(self.losses)
        return TrainedModel(
            network, self.config, self.pairs.genes, self.sections, losses, self.steps, self.seconds
        )

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for `resume`."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": self._rng_state,
            "losses": list(self.losses),
            "steps": self.steps,
            "seconds": self.seconds,
            "done": self._progress,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, which must be of a run with the same sections and settings."""
        self.network.load_state_dict(state["network"])
        # States written by earlier versions have the British spelling.
        self.optimizer.load_state_dict(state["optimizer" if "optimizer" in state else "optimiser"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self._rng_state = state["random"]
        self.losses = list(state["losses"])
        self.steps, self.seconds, self._progress = state["steps"], state["seconds"], state["done"]

    @contextmanager
    def _own_rng(self, state: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Use the run's own random number generators, set to `state`; restore the caller's afterwards."""
        devices = [torch.device(self.config.device)] if self._cuda else []
        with torch.random.fork_rng(devices=devices):
            if state is not None:
                torch.set_rng_state(state["cpu"])
                if "cuda" in state and self._cuda:
                    torch.cuda.set_rng_state(state["cuda"], self.config.device)
                elif self._cuda:  # the run began on the CPU
                    with torch.cuda.device(self.config.device):
                        torch.cuda.manual_seed(self.config.seed)
            yield

    def _save_rng(self) -> None:
        self._rng_state = {"cpu": torch.get_rng_state()}
        if self._cuda:
            self._rng_state["cuda"] = torch.cuda.get_rng_state(self.config.device)

    def _step(self, rows: Tensor) -> float:
        loss = self._loss(rows)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"the loss is not a number at learning rate {self.config.learning_rate:g}; "
                "lower it or raise the temperature"
            )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return value

    def _loss(self, rows: Tensor) -> Tensor:
        config, pairs = self.config, self.pairs
        pixels = augment(pairs.tiles_of(rows).to(config.device), config.augmentation)
        tiles = encoder_input(pixels, config.settings.preprocessing)
        expression, position = (x[rows].to(config.device) for x in (pairs.expression, pairs.position))
        half = HALF.get(config.precision)
        with torch.autocast(torch.device(config.device).type, dtype=half, enabled=half is not None):
            spots = self.network.encode_spots(expression, position)
            images = self.network.encode_tiles(tiles)
        return LOSSES[config.system](
            spots.float(), images.float(), temperature=config.temperature, image_weight=config.image_weight
        )


def open_device(name: str) -> torch.device:
    """Return the device "cpu", "cuda" or "cuda:N"; raises ResourceError if it is another one or missing."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    # torch wraps a large number round to a negative one.
    index = device.index or 0
    if device.type == "cpu" or (device.type == "cuda" and 0 <= index < torch.cuda.device_count()):
        return device
    raise ResourceError(f"there is no device {name}; choose --device cpu, cuda or cuda:N")


def table_rows(config: TrainConfig, pairs: Pairs) -> int:
    """Rows of the position tables: a power of two that covers `pairs`, or 0 without positions."""
    if config.positions == "none":
        return 0
    return max(MIN_TABLE_ROWS, 1 << int(pairs.position.max()).bit_length())


def build_network(config: TrainConfig, pairs: Pairs) -> Network:
    """Build the network of `config` with random weights and position tables for `pairs`."""
    encoder = config.recipe or config.encoder
    if config.system == "bleep":
        width, dropout = config.projection_dim, config.dropout
        bleep = Bleep(encoder, len(pairs.genes), projection_dim=width, dropout=dropout)
        take_tiles(bleep, config.settings.tile.size_px)
        return bleep
    network = MclSTExp(
        encoder,
        len(pairs.genes),
        projection_dim=config.projection_dim,
        heads=config.settings.heads,
        head_dim=config.head_dim,
        depth=config.depth,
        positions=table_rows(config, pairs),
        dropout=config.dropout,
    )
    prepare_positions(network, config)
    take_tiles(network, config.settings.tile.size_px)
    return network


def _check_tile(network: Network, config: TrainConfig) -> None:
    side = config.settings.tile.size_px
    try:
        with torch.inference_mode():
            network.eval().encode_tiles(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"the image encoder {config.encoder} does not take tiles of {side} px "
            f"({str(error).splitlines()[0]}); choose another --tile-px or --encoder"
        ) from error


def batches_per_epoch(count: int, size: int) -> int:
    """Number of batches that `batches` makes of `count` pairs."""
    return -(-count // size)


def batches(count: int, size: int) -> Iterator[Tensor]:
    """Yield shuffled indices, int64, of `count` pairs in batches of at most `size`, even to one pair."""
    # Equal batches: the loss of a short one is on another scale, and a batch of one has no gradient.
    yield from torch.tensor_split(torch.randperm(count), batches_per_epoch(count, size))


def progress_fraction(config: TrainConfig, steps: int, steps_per_epoch: int, elapsed: float) -> float:
    """Fraction of the run that is done, 0 … 1, by the limit that will be reached first."""
    by_epochs = steps / (config.epochs * steps_per_epoch) if config.epochs is not None else 0.0
    by_seconds = elapsed / config.seconds if config.seconds is not None else 0.0
    return min(max(by_epochs, by_seconds), 1.0)


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Learning rate at `progress` (0 … 1): constant, or half a cosine down to 0."""
    factor = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1.0
    return config.learning_rate * factor
