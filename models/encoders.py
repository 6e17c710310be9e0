"""Image encoders under the published key names."""

from __future__ import annotations

import timm
import torch
import torchvision
from torch import Tensor, nn

from mclst.models.recipes.build import build_network, pooled_features
from mclst.models.recipes.recipe import Recipe
from mclst.models.recipes.resize import fit_tiles

WIDTHS = {
    "densenet121": 1024,
    "resnet18": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "vit_base_patch32_224": 768,
}
"""Features per tile by torchvision or timm name."""


def known_encoder(name: str) -> bool:
    """Whether ImageEncoder can build `name`: one of WIDTHS or a timm architecture."""
    return name in WIDTHS or timm.is_model(name)


class ImageEncoder(nn.Module):
    """Tiles → pooled features; the backbone is named `model`, as in the published checkpoints.

    Parameters
    ----------
    name : str or Recipe
        One of WIDTHS, a timm architecture with its own pooling, or a recipe. Weights are random.
    vit_norm : {"fc_norm", "norm"}
        Of the published ViT: normalization after pooling (current timm) or before (older timm).

    Raises
    ------
    ValueError
        If `name` is unknown.

    Notes
    -----
    torchvision networks lose their last child, the classifier. DenseNet thereby also loses the ReLU that
    torchvision applies between `norm5` and pooling, so its features may be negative.
    """

    def __init__(self, name: str | Recipe, *, vit_norm: str = "fc_norm") -> None:
        super().__init__()
        self.recipe = name if isinstance(name, Recipe) else None
        self.fit: nn.Module = nn.Identity()
        self.model: nn.Module
        if isinstance(name, Recipe):
            self.name, self.width, self.model = name.name, name.width, build_network(name)
            return
        if not known_encoder(name):
            raise ValueError(f"image encoder is {name!r}; choose {', '.join(WIDTHS)} or a timm architecture")
        self.name = name
        if name not in WIDTHS:
            self.model = timm.create_model(name, pretrained=False, num_classes=0)
        elif name.startswith("vit"):
            self.model = timm.create_model(
                name, pretrained=False, num_classes=0, global_pool="avg", fc_norm=vit_norm == "fc_norm"
            )
        else:
            network = torchvision.models.get_model(name, weights=None)
            self.model = nn.Sequential(*list(network.children())[:-1])
        self.width = WIDTHS[name] if name in WIDTHS else _timm_width(self.model)

    def take_tiles(self, side: int) -> None:
        """Prepare for tiles of `side` px, which a recipe resizes and crops; others take them as they are."""
        recipe = self.recipe
        if recipe is not None and side != recipe.tile_px:
            self.fit = fit_tiles(side, recipe.resize_px, recipe.tile_px, recipe.interpolation)

    def forward(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W] → float32 [N, width]."""
        if self.recipe is not None:
            return pooled_features(self.model, self.fit(tiles), self.recipe.pooling)
        features: Tensor = self.model(tiles)
        if self.name == "densenet121":
            features = nn.functional.adaptive_avg_pool2d(features, 1)
        return torch.flatten(features, 1)


def take_tiles(network: nn.Module, side: int) -> None:
    """Prepare a network whose `image_encoder` has a recipe for tiles of `side` px."""
    encoder = getattr(network, "image_encoder", None)
    if isinstance(encoder, ImageEncoder):
        encoder.take_tiles(side)


def _timm_width(network: nn.Module) -> int:
    # Some networks widen once more before the classifier.
    width = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)
    if width is None:
        raise ValueError(
            f"timm's {type(network).__name__} does not state its number of features; choose another encoder"
        )
    return int(width)
