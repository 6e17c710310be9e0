"""CTransPath: a Swin-T whose patch embedding is a small convolutional network.

Wang et al., "Transformer-based unsupervised contrastive learning for histopathological image
classification", Medical Image Analysis 2022, section 3.2; names as in the published weights.
"""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn


class ConvolutionalStem(nn.Module):
    """Two 3 × 3 convolutions of stride 2 and one of 1 × 1, in place of 4 × 4 patches; channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in (width // 8, width // 4):
            layers += [
                nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            before = channels
        self.proj = nn.Sequential(*layers, nn.Conv2d(before, width, 1))
        self.norm = nn.LayerNorm(width)

    def forward(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W] → float32 [N, H/4, W/4, width]."""
        out: Tensor = self.norm(self.proj(tiles).permute(0, 2, 3, 1))
        return out


def build_ctranspath(architecture: str, **arguments: Any) -> nn.Module:
    """A Swin of timm with the convolutional stem, pooled by its mean, random weights."""
    network: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    network.patch_embed = ConvolutionalStem(int(network.embed_dim))  # type: ignore[arg-type]
    return network
