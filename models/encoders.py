"""Image encoders under the key names the published code gives them."""

from __future__ import annotations

import timm
import torch
import torchvision
from torch import Tensor, nn

WIDTHS = {
    "densenet121": 1024,
    "resnet18": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "vit_base_patch32_224": 768,
}
"""Features per tile of each encoder, by its torchvision or timm name."""


class ImageEncoder(nn.Module):
    """Tiles → pooled features; the backbone sits under `model`, as in the published checkpoints.

    The torchvision networks lose their last child (the classifier). For DenseNet that also loses the ReLU that
    torchvision applies between `norm5` and the pooling in its forward, so features may be negative.
    """

    def __init__(self, name: str, *, vit_norm: str = "fc_norm") -> None:
        """Build `name`, one of WIDTHS, with random weights.

        vit_norm: "fc_norm" (normalised after pooling, today's timm) or "norm" (before pooling, older timm).
        Raises ValueError for another name.
        """
        super().__init__()
        if name not in WIDTHS:
            raise ValueError(f"image encoder is {name!r}; choose one of {', '.join(WIDTHS)}")
        self.name = name
        self.width = WIDTHS[name]
        self.model: nn.Module
        if name.startswith("vit"):
            self.model = timm.create_model(
                name, pretrained=False, num_classes=0, global_pool="avg", fc_norm=vit_norm == "fc_norm"
            )
        else:
            network = torchvision.models.get_model(name, weights=None)
            self.model = nn.Sequential(*list(network.children())[:-1])

    def forward(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W] → float32 [N, width]."""
        features: Tensor = self.model(tiles)
        if self.name == "densenet121":
            features = nn.functional.adaptive_avg_pool2d(features, 1)
        return torch.flatten(features, 1)
