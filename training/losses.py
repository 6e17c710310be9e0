"""What is minimised: a tile's embedding and its spot's beside one another, apart from the others of the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def _logits(spots: Tensor, tiles: Tensor, temperature: float) -> Tensor:
    """Spot x tile similarities [N, N]: dot products as they are, without normalisation, over the temperature."""
    return spots @ tiles.T / temperature


def contrastive_loss(spots: Tensor, tiles: Tensor, *, temperature: float, image_weight: float) -> Tensor:
    """The loss of N pairs: λ·CE(tile picks its spot) + (1 - λ)·CE(spot picks its tile), a scalar.

    spots, tiles: embeddings float32 [N, D], row i of one belonging to row i of the other; compared as they are, by
    spots·tilesᵀ / temperature, without normalisation (Min et al. 2024, as the published code computes it).
    """
    logits = _logits(spots, tiles, temperature)
    own = torch.arange(len(logits), device=logits.device)
    by_spot = functional.cross_entropy(logits, own)
    by_tile = functional.cross_entropy(logits.T, own)
    return image_weight * by_tile + (1 - image_weight) * by_spot


def soft_contrastive_loss(spots: Tensor, tiles: Tensor, *, temperature: float, image_weight: float) -> Tensor:
    """The same with soft targets: a spot may pick any tile that is like its own, a scalar.

    Targets are softmax((spots·spotsᵀ + tiles·tilesᵀ) / (2·temperature)) by rows, transposed where tiles pick; the
    gradient flows through them too (Xie et al. 2023, as the published code computes it, where λ is ½).
    """
    logits = _logits(spots, tiles, temperature)
    targets = functional.softmax((spots @ spots.T + tiles @ tiles.T) / (2 * temperature), dim=1)
    by_spot = -(targets * functional.log_softmax(logits, dim=1)).sum(1).mean()
    by_tile = -(targets.T * functional.log_softmax(logits.T, dim=1)).sum(1).mean()
    return image_weight * by_tile + (1 - image_weight) * by_spot


LOSSES: dict[str, Callable[..., Tensor]] = {"mclstexp": contrastive_loss, "bleep": soft_contrastive_loss}
"""By system."""
