"""A small network of each system without a bank, with its export options."""

from __future__ import annotations

from typing import Any

import torch
from small_model import GENES
from small_systems import randomize_norms
from torchvision.models import DenseNet

from mclst.models.hist2st import Hist2St
from mclst.models.histogene import HisToGene
from mclst.models.stnet import StNet
from mclst.models.thitogene import ThitoGene

NORMALIZED = ("--mean", "0.7,0.5,0.6", "--std", "0.2,0.25,0.3")

# System: network, tile px, export options.
SYSTEM_CASES: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "stnet": (lambda: StNet(GENES), 32, NORMALIZED),
    "histogene": (
        lambda: HisToGene(GENES, tile_px=20, width=32, heads=4, head_dim=8, hidden=48, depth=2),
        20,
        ("--heads", "4"),
    ),
    "hist2st": (
        lambda: Hist2St(GENES, tile_px=28, patch=7, channels=16, heads=4, head_dim=8, depths=(2, 2, 3)),
        28,
        ("--heads", "4"),
    ),
    "thitogene": (
        lambda: ThitoGene(
            GENES,
            depth=1,
            heads=2,
            head_dim=8,
            hidden=24,
            capsules=3,
            route_dim=8,
            graph_hidden=12,
            graph_out=10,
            graph_heads=2,
            head_hidden=14,
        ),
        112,
        ("--heads", "2"),
    ),
}


def short_densenet(*, weights: None) -> DenseNet:
    """DenseNet-121 with two layers in each of its blocks."""
    return DenseNet(32, (2, 2, 2, 2), 64)


def small_network(name: str) -> Any:
    torch.manual_seed(5)
    return randomize_norms(SYSTEM_CASES[name][0]())
