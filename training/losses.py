"""Contrastive losses of mclSTExp and BLEEP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def _logits(spots: Tensor, tiles: Tensor, temperature: float) -> Tensor:
    """Spot x tile similarities [N, N]: unnormalized dot products over the temperature."""
    return spots @ tiles.T / temperature


def contrastive_loss(spots: Tensor, tiles: Tensor, *, temperature: float, image_weight: float) -> Tensor:
    """Loss of N pairs: λ·CE(tile picks its spot) + (1 - λ)·CE(spot picks its tile).

    Parameters
    ----------
    spots, tiles : Tensor of float32, shape (N, D)
        Embeddings; row i of both belongs to pair i.
    temperature : float
        Divides the similarities spots·tilesᵀ, which are not normalized.
    image_weight : float
        λ, 0 … 1.

    Notes
    -----
    Min et al. 2024, as the published code computes it.
    """
    logits = _logits(spots, tiles, temperature)
    target = torch.arange(len(logits), device=logits.device)
    by_spot = functional.cross_entropy(logits, target)
    by_tile = functional.cross_entropy(logits.T, target)
    return image_weight * by_tile + (1 - image_weight) * by_spot


def soft_contrastive_loss(spots: Tensor, tiles: Tensor, *, temperature: float, image_weight: float) -> Tensor:
    """Contrastive loss with soft targets: similar spots and tiles share the target.

    Parameters as in `contrastive_loss`.

    Notes
    -----
    Targets are softmax((spots·spotsᵀ + tiles·tilesᵀ) / (2·temperature)) over rows, transposed for the tile
    side. The gradient flows through them (Xie et al. 2023, as the published code computes it, where λ is ½).
    """
    logits = _logits(spots, tiles, temperature)
    targets = functional.softmax((spots @ spots.T + tiles @ tiles.T) / (2 * temperature), dim=1)
    by_spot = -(targets * functional.log_softmax(logits, dim=1)).sum(1).mean()
    by_tile = -(targets.T * functional.log_softmax(logits.T, dim=1)).sum(1).mean()
    return image_weight * by_tile + (1 - image_weight) * by_spot


LOSSES: dict[str, Callable[..., Tensor]] = {"mclstexp": contrastive_loss, "bleep": soft_contrastive_loss}
"""Loss of each system."""
