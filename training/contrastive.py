"""Contrastive training: every measured spot beside its own tile, apart from the others of its batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mclst.models.mclstexp import MclSTExp
from mclst.runtime.errors import InputError
from mclst.training.data import Pairs, TrainingSection, augment, encoder_input, pair_up
from mclst.training.settings import TrainConfig

SMALLEST_TABLE = 128
"""Rows of a position table at least: a Visium array is 128 columns wide."""


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

    network: MclSTExp
    config: TrainConfig
    genes: tuple[str, ...]
    sections: tuple[TrainingSection, ...]
    losses: tuple[float, ...]
    steps: int
    seconds: float = field(compare=False)


def contrastive_loss(spots: Tensor, tiles: Tensor, *, temperature: float, image_weight: float) -> Tensor:
    """The loss of N pairs: λ·CE(tile picks its spot) + (1 - λ)·CE(spot picks its tile), a scalar.

    spots, tiles: embeddings float32 [N, D], row i of one belonging to row i of the other; compared as they are, by
    spots·tilesᵀ / temperature, without normalisation (Min et al. 2024, as the published code computes it).
    """
    logits = spots @ tiles.T / temperature
    own = torch.arange(len(logits), device=logits.device)
    by_spot = torch.nn.functional.cross_entropy(logits, own)
    by_tile = torch.nn.functional.cross_entropy(logits.T, own)
    return image_weight * by_tile + (1 - image_weight) * by_spot


def train(
    sections: Sequence[TrainingSection],
    config: TrainConfig,
    progress: Callable[[Step], None] | None = None,
) -> TrainedModel:
    """Train mclSTExp from random weights on measured sections; `progress` hears of every step.

    Raises ReferenceDataError and ValueError as `pair_up` does, and InputError where the loss stops being a number.
    """
    pairs = pair_up(sections, config.settings)
    devices = [torch.device(config.device)] if config.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(config.seed)
        network = build_network(config, pairs).to(config.device)
        losses, steps, seconds = _optimise(network, pairs, config, progress)
    network = network.to("cpu").eval().requires_grad_(False)
    return TrainedModel(network, config, pairs.genes, tuple(sections), losses, steps, seconds)


def build_network(config: TrainConfig, pairs: Pairs) -> MclSTExp:
    """The network `config` describes, with position tables long enough for `pairs` (a power of two)."""
    rows = max(SMALLEST_TABLE, 1 << int(pairs.position.max()).bit_length())
    network = MclSTExp(
        config.encoder,
        len(pairs.genes),
        projection_dim=config.projection_dim,
        heads=config.settings.heads,
        head_dim=config.head_dim,
        depth=config.depth,
        positions=rows,
        dropout=config.dropout,
    )
    for table in (network.x_embed, network.y_embed):
        torch.nn.init.normal_(table.weight, std=config.position_std)
    return network


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


def _optimise(
    network: MclSTExp, pairs: Pairs, config: TrainConfig, progress: Callable[[Step], None] | None
) -> tuple[tuple[float, ...], int, float]:
    kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
    optimiser = kind(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    network.train()
    started = time.monotonic()
    losses: list[float] = []
    steps, elapsed, done = 0, 0.0, 0.0
    while done < 1:
        of_epoch: list[float] = []
        order = list(batches(len(pairs), config.batch_size))
        for rows in order:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, done)
            of_epoch.append(_step(network, optimiser, pairs, rows, config))
            steps, elapsed = steps + 1, time.monotonic() - started
            done = share_done(config, steps, len(order), elapsed)
            if progress is not None:
                progress(Step(len(losses), steps, of_epoch[-1], elapsed))
            if done >= 1:
                break
        losses.append(sum(of_epoch) / len(of_epoch))
    return tuple(losses), steps, elapsed


def _step(
    network: MclSTExp, optimiser: torch.optim.Optimizer, pairs: Pairs, rows: Tensor, config: TrainConfig
) -> float:
    tiles = encoder_input(
        augment(pairs.tiles_of(rows).to(config.device), config.augmentation), config.settings.preprocessing
    )
    spots = network.encode_spots(
        pairs.expression[rows].to(config.device), pairs.position[rows].to(config.device)
    )
    loss = contrastive_loss(
        spots, network.encode_tiles(tiles), temperature=config.temperature, image_weight=config.image_weight
    )
    value = float(loss.detach())
    if not math.isfinite(value):
        raise InputError(
            f"the loss is not a number at learning rate {config.learning_rate:g}; lower it or raise the temperature"
        )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return value
