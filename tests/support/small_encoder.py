"""A small network of timm as a recipe of one's own, with weights whose features are of size 1."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from small_model import TILE_PX
from torch import nn

WIDTH = 256
_RECIPE = f"""
name: small
title: a small network
builder: timm
architecture: test_efficientnet
width: {WIDTH}
tile_px: {TILE_PX}
mean: [0.5, 0.5, 0.5]
std: [0.5, 0.5, 0.5]
"""


def small_network() -> nn.Module:
    """The network, with random weights."""
    network: nn.Module = timm.create_model("test_efficientnet", num_classes=0)
    return network


def write_small_encoder(folder: Path) -> tuple[Path, Path]:
    """Write its recipe and weights, for --encoder and --weights."""
    torch.manual_seed(6)
    network = small_network().train()
    # Toward one side, as the features of trained encoders.
    network.bn2.bias.data.fill_(0.1)  # type: ignore[operator, union-attr]
    for _ in range(30):
        network(torch.randn(8, 3, 64, 64))
    recipe, weights = folder / "small.yaml", folder / "small.pth"
    recipe.write_text(_RECIPE)
    torch.save(network.state_dict(), weights)
    return recipe, weights
