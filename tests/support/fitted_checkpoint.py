"""A checkpoint of a fitted head on a tiny network of timm with random weights: two outputs, two views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_model import GENES, TILE_PX
from synthetic_slides import stained

from mclst.models.recipes.build import build_encoder
from mclst.models.recipes.recipe import Recipe
from mclst.models.views import view_px
from mclst.runtime.bundle.manifest import (
    CHECKPOINT_FORMAT,
    Normalization,
    Preprocessing,
    Retrieval,
    Settings,
    Tile,
)

VIEWS, EMBEDDING, BANK = (1.5, 1.0), 6, 40

RECIPE = Recipe(
    name="test_efficientnet",
    title="a tiny EfficientNet",
    family="tests",
    builder="timm",
    architecture="test_efficientnet",
    width=256,
    parameters=0,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    tile_px=TILE_PX,
)


def fitted_checkpoint(path: Path, *, retrieval: bool, sections: tuple[str, ...] = ("A1", "A2")) -> Path:
    """Write a checkpoint as mclst-fit does: of a ridge, or with `retrieval` of a blend with its bank."""
    torch.manual_seed(3)
    rng = np.random.default_rng(4)
    encoder = build_encoder(RECIPE)
    side = max(view_px(TILE_PX, view) for view in VIEWS)
    layer = torch.nn.Linear(RECIPE.width * len(VIEWS), EMBEDDING + GENES)
    layer.weight.data.mul_(20)
    layer.bias.data.uniform_(0.5, 1.5)
    name = "projection" if retrieval else "head"
    kept: dict[str, Any] = {}
    if retrieval:
        kept["retrieval"] = Retrieval(k=7, rank="l2", distance="l2", weighting="uniform", temperature=1.0)
    settings = Settings(
        tile=Tile(size_px=side),
        preprocessing=Preprocessing(mean=RECIPE.mean, std=RECIPE.std),
        normalization=Normalization(input="none", expression="gene-wise"),
        **kept,
    )
    tiles = np.kron(stained(rng.uniform(0, 0.6, (8, 6, 6, 2))), np.ones((1, 8, 8, 1), np.uint8))
    content = {
        "format": CHECKPOINT_FORMAT,
        "model": {
            **{f"encoder.{key}": value for key, value in encoder.state_dict().items()},
            f"{name}.weight": layer.weight.detach(),
            f"{name}.bias": layer.bias.detach(),
        },
        "config": settings.model_dump(mode="json"),
        "genes": [f"GENE{i}" for i in range(GENES)],
        "fit": {
            "recipe": RECIPE.record(),
            "views": list(VIEWS),
            "context_um": None,
            "prediction_dim": GENES,
            "sections": {section: BANK // len(sections) for section in sections},
        },
        "tiles": torch.from_numpy(tiles[:, :side, :side]),
    }
    if retrieval:
        content["bank"] = {
            "embedding": torch.from_numpy(rng.normal(size=(BANK, EMBEDDING)).astype(np.float32)),
            "expression": torch.from_numpy(rng.normal(0, 0.2, (BANK, GENES)).astype(np.float32)),
            "spot": [f"s{i}" for i in range(BANK)],
            "section": [sections[i * len(sections) // BANK] for i in range(BANK)],
        }
    torch.save(content, path)
    return path
