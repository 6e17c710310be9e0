"""Contrastive training: every measured spot beside its own tile, apart from the others of its batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mclst.models.bleep import Bleep
from mclst.models.mclstexp import MclSTExp
from mclst.runtime.errors import InputError, ResourceError
from mclst.training.data import Pairs, TrainingSection, augment, encoder_input, pair_up
from mclst.training.losses import LOSSES
from mclst.training.positions import prepare_positions, tabulate_positions
from mclst.training.settings import TrainConfig

SMALLEST_TABLE = 128
"""Rows of a position table at least: a Visium array is 128 columns wide."""
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
Network = MclSTExp | Bleep


@dataclass(frozen=True)
class Step:
    """One optimisation step, for whoever watches: loss before the step, wall seconds since the start."""

    epoch: int
    step: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class TrainedModel:
    """What training leaves.

    network: on the CPU, in eval mode. losses: mean loss of every epoch begun. steps, seconds: the work done.
    """

    network: Network
    config: TrainConfig
    genes: tuple[str, ...]
    sections: tuple[TrainingSection, ...]
    losses: tuple[float, ...]
    steps: int
    seconds: float = field(compare=False)


Watch = Callable[[Step], None]


def train(
    sections: Sequence[TrainingSection],
    config: TrainConfig,
    progress: Watch | None = None,
) -> TrainedModel:
    """Train from random weights on measured sections; `progress` hears of every step.

    Raises what Training raises.
    """
    training = Training(sections, config)
    while not training.finished:
        training.epoch(progress)
    return training.trained()


class Training:
    """A run, an epoch at a time; between epochs it can be put away with `state` and taken up again with `resume`.

    network: in training. losses: mean loss of every epoch so far. steps, seconds: the work done so far.
    Taken up, it gives the weights it would have given had it never stopped (unless `seconds` ends it).
    """

    def __init__(
        self,
        sections: Sequence[TrainingSection],
        config: TrainConfig,
        initialise: Callable[[Network], None] | None = None,
    ) -> None:
        """Line the sections up and make the network, which `initialise` may change before anything is learned.

        Raises ReferenceDataError and ValueError as `pair_up` does; InputError where the image encoder does not take
        tiles of this size; ResourceError where the device is not there.
        """
        self.sections, self.config = tuple(sections), config
        self.pairs = pair_up(sections, config.settings)
        self.losses: list[float] = []
        self.steps, self.seconds, self._done = 0, 0.0, 0.0
        self._cuda = config.device.startswith("cuda")
        if self._cuda and not torch.cuda.is_available():
            raise ResourceError(f"there is no device {config.device}; choose --device cpu")
        with self._random_numbers():
            torch.manual_seed(config.seed)
            self.network = build_network(config, self.pairs)
            if initialise is not None:
                initialise(self.network)
            _check_tile(self.network, config)
            self.network.to(config.device).train()
            self._keep_random_numbers()
        kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
        learned = [weight for weight in self.network.parameters() if weight.requires_grad]
        self._optimiser = kind(learned, lr=config.learning_rate, weight_decay=config.weight_decay)
        self._scaler = torch.amp.GradScaler("cuda", enabled=config.precision == "fp16")

    @property
    def finished(self) -> bool:
        """Whether the epochs or the seconds are spent."""
        return self._done >= 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimisation steps of a whole epoch."""
        return batches_per_epoch(len(self.pairs), self.config.batch_size)

    def epoch(self, watch: Watch | None = None) -> float:
        """Go once through all pairs, or until the seconds are spent; the mean loss.

        Raises InputError where the loss stops being a number.
        """
        started, before = time.monotonic(), self.seconds
        of_epoch: list[float] = []
        with self._random_numbers(self._random):
            for rows in batches(len(self.pairs), self.config.batch_size):
                for group in self._optimiser.param_groups:
                    group["lr"] = learning_rate(self.config, self._done)
                of_epoch.append(self._step(rows))
                self.steps, self.seconds = self.steps + 1, before + time.monotonic() - started
                self._done = share_done(self.config, self.steps, self.steps_per_epoch, self.seconds)
                if watch is not None:
                    watch(Step(len(self.losses), self.steps, of_epoch[-1], self.seconds))
                if self.finished:
                    break
            self._keep_random_numbers()
        self.losses.append(sum(of_epoch) / len(of_epoch))
        return self.losses[-1]

    def trained(self) -> TrainedModel:
        """The model as it is now, on the CPU; training is over with it."""
        network = self.network.to("cpu").eval()
        if isinstance(network, MclSTExp):
            tabulate_positions(network, table_rows(self.config, self.pairs))
        network.requires_grad_(False)
        losses = tuple(self.losses)
        return TrainedModel(
            network, self.config, self.pairs.genes, self.sections, losses, self.steps, self.seconds
        )

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `resume` goes on."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": self._random,
            "losses": list(self.losses),
            "steps": self.steps,
            "seconds": self.seconds,
            "done": self._done,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, of a run of the same sections and settings."""
        self.network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self._random = state["random"]
        self.losses = list(state["losses"])
        self.steps, self.seconds, self._done = state["steps"], state["seconds"], state["done"]

    @contextmanager
    def _random_numbers(self, kept: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """The run's own random numbers, taken up from `kept`; the caller's come back afterwards."""
        devices = [torch.device(self.config.device)] if self._cuda else []
        with torch.random.fork_rng(devices=devices):
            if kept is not None:
                torch.set_rng_state(kept["cpu"])
                if self._cuda:
                    torch.cuda.set_rng_state(kept["cuda"], self.config.device)
            yield

    def _keep_random_numbers(self) -> None:
        self._random = {"cpu": torch.get_rng_state()}
        if self._cuda:
            self._random["cuda"] = torch.cuda.get_rng_state(self.config.device)

    def _step(self, rows: Tensor) -> float:
        loss = self._loss(rows)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"the loss is not a number at learning rate {self.config.learning_rate:g}; "
                "lower it or raise the temperature"
            )
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return value

    def _loss(self, rows: Tensor) -> Tensor:
        config, pairs = self.config, self.pairs
        pixels = augment(pairs.tiles_of(rows).to(config.device), config.augmentation)
        tiles = encoder_input(pixels, config.settings.preprocessing)
        expression, position = (of[rows].to(config.device) for of in (pairs.expression, pairs.position))
        half = HALF.get(config.precision)
        with torch.autocast(torch.device(config.device).type, dtype=half, enabled=half is not None):
            spots = self.network.encode_spots(expression, position)
            images = self.network.encode_tiles(tiles)
        return LOSSES[config.system](
            spots.float(), images.float(), temperature=config.temperature, image_weight=config.image_weight
        )


def table_rows(config: TrainConfig, pairs: Pairs) -> int:
    """Rows of the position tables: a power of two long enough for `pairs`, none without positions."""
    if config.positions == "none":
        return 0
    return max(SMALLEST_TABLE, 1 << int(pairs.position.max()).bit_length())


def build_network(config: TrainConfig, pairs: Pairs) -> Network:
    """The network `config` describes, with random weights and positions for `pairs`."""
    if config.system == "bleep":
        width, dropout = config.projection_dim, config.dropout
        return Bleep(config.encoder, len(pairs.genes), projection_dim=width, dropout=dropout)
    network = MclSTExp(
        config.encoder,
        len(pairs.genes),
        projection_dim=config.projection_dim,
        heads=config.settings.heads,
        head_dim=config.head_dim,
        depth=config.depth,
        positions=table_rows(config, pairs),
        dropout=config.dropout,
    )
    prepare_positions(network, config)
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
    """How many batches `batches` makes of `count` pairs."""
    return -(-count // size)


def batches(count: int, size: int) -> Iterator[Tensor]:
    """A random order of `count` pairs, int64, in batches that differ by one pair at most and hold `size` at most.

    Equal batches matter here: the loss of a short one is on another scale, and a batch of one teaches nothing.
    """
    yield from torch.tensor_split(torch.randperm(count), batches_per_epoch(count, size))


def share_done(config: TrainConfig, steps: int, steps_per_epoch: int, elapsed: float) -> float:
    """How much of the run is behind, 0 … 1, by whichever limit is the nearer."""
    by_epochs = steps / (config.epochs * steps_per_epoch) if config.epochs is not None else 0.0
    by_seconds = elapsed / config.seconds if config.seconds is not None else 0.0
    return min(max(by_epochs, by_seconds), 1.0)


def learning_rate(config: TrainConfig, done: float) -> float:
    """The rate once `done` (0 … 1) of the run is behind: constant, or half a cosine down to 0."""
    falling = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0
    return config.learning_rate * falling
