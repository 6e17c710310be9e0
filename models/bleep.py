"""BLEEP (Xie et al. 2023): tiles and measured spots in one embedding space, without a spot encoder.

State-dict compatible with the published class `CLIPModel` and its variants.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from mclst.models import encoders
from mclst.models.mclstexp import ProjectionHead
from mclst.models.recipes.recipe import Recipe
from mclst.models.system import State, System, Traits, count_blocks

RESNETS = {6: "resnet50", 23: "resnet101", 36: "resnet152"}
"""By the number of blocks in `layer3`."""


class ImageEncoder(nn.Module):
    """A timm network without classifier, average-pooled, under the name `model`."""

    def __init__(self, name: str, *, vit_norm: str = "fc_norm") -> None:
        """Random weights; vit_norm as in `mclst.models.encoders.ImageEncoder`."""
        super().__init__()
        self.name = name
        vit_only: dict[str, Any] = {"fc_norm": vit_norm == "fc_norm"} if name.startswith("vit") else {}
        self.model = timm.create_model(name, pretrained=False, num_classes=0, global_pool="avg", **vit_only)
        self.width = int(self.model.num_features)  # type: ignore[arg-type]

    def forward(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W] → float32 [N, width]."""
        return torch.flatten(self.model(tiles), 1)


class Bleep(nn.Module):
    """An image encoder and two projections; each spot is projected independently."""

    def __init__(
        self,
        encoder: str | Recipe,
        genes: int,
        *,
        projection_dim: int = 256,
        dropout: float = 0.0,
        vit_norm: str = "fc_norm",
    ) -> None:
        super().__init__()
        self.image_encoder: ImageEncoder | encoders.ImageEncoder = (
            encoders.ImageEncoder(encoder)
            if isinstance(encoder, Recipe)
            else ImageEncoder(encoder, vit_norm=vit_norm)
        )
        self.image_projection = ProjectionHead(self.image_encoder.width, projection_dim, dropout)
        self.spot_projection = ProjectionHead(genes, projection_dim, dropout)

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, H, W], preprocessed → embeddings float32 [N, projection_dim]."""
        out: Tensor = self.image_projection(self.image_encoder(tiles))
        return out

    def encode_spots(self, expression: Tensor, position: Tensor | None = None) -> Tensor:
        """float32 [S, genes] → float32 [S, projection_dim]; `position` is ignored."""
        out: Tensor = self.spot_projection(expression)
        return out


def _encoder(state: State) -> str:
    prefix = "image_encoder.model."
    if prefix + "cls_token" in state:
        if state[prefix + "cls_token"].shape[-1] == 1024:
            return "vit_large_patch32_224"
        return "vit_base_patch32_clip_224" if prefix + "norm_pre.weight" in state else "vit_base_patch32_224"
    name = RESNETS.get(count_blocks(state, prefix + "layer3."))
    if name is None or prefix + "layer1.0.conv3.weight" not in state:
        raise ValueError(
            "its image encoder is none of ResNet-50/101/152, ViT-B/32, CLIP's ViT-B/32 and ViT-L/32, "
            "which can be exported"
        )
    return name


def _traits(state: State, encoder: str | Recipe | None) -> Traits:
    width, genes = state["spot_projection.projection.weight"].shape
    norm = "norm" if "image_encoder.model.norm.weight" in state else "fc_norm"
    recipe = encoder if isinstance(encoder, Recipe) else None
    name = encoder.name if isinstance(encoder, Recipe) else encoder or _encoder(state)
    return Traits(encoder=name, genes=genes, width=width, extra={"vit_norm": norm, "recipe": recipe})


def _build(traits: Traits, heads: int) -> Bleep:
    encoder = traits.extra["recipe"] or traits.encoder
    return Bleep(encoder, traits.genes, projection_dim=traits.width, vit_norm=traits.extra["vit_norm"])


# The published notebook averages the 50 nearest by cosine. Until October 2024 it read BGR tiles by OpenCV.
SYSTEM = System(
    name="bleep",
    title="BLEEP",
    kind="retrieval",
    claims=lambda state: (
        "spot_projection.projection.weight" in state
        and not any(name.startswith("spot_encoder.") for name in state)
        and any(name.startswith("image_encoder.model.") for name in state)
    ),
    traits=_traits,
    build=_build,
    settings={
        "preprocessing": {"channels": "bgr", "pixel_range": "0-255"},
        "retrieval": {"k": 50, "distance": "l2", "weighting": "uniform"},
        "normalization": {"input": "median-log1p", "expression": "median-log1p"},
    },
)
