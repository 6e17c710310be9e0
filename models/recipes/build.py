"""A recipe's network in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import timm.layers
import torch
import torchvision
from torch import Tensor, nn

from mclst.models.recipes.attention_pooling import AttentionPooled
from mclst.models.recipes.ctranspath import build_ctranspath
from mclst.models.recipes.recipe import Pooling, Recipe
from mclst.runtime.errors import CheckpointError

LAYERS: dict[str, Any] = {
    "SwiGLUPacked": timm.layers.SwiGLUPacked,
    "SwiGLU": timm.layers.SwiGLU,
    "GluMlp": timm.layers.GluMlp,
    "Mlp": timm.layers.Mlp,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "GELUTanh": timm.layers.GELUTanh,
    "QuickGELU": timm.layers.QuickGELU,
}
"""Layers that a recipe may name."""


class Encoder(nn.Module):
    """A network with its pooling; the network is named `model`, as in the published checkpoints.

    Parameters
    ----------
    model : nn.Module
        Its `forward_features` gives tokens [N, T, C] unless `pooling` is "network".
    recipe : Recipe
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model: Any = model
        self.pooling = recipe.pooling
        self.name, self.width, self.tile_px = recipe.name, recipe.width, recipe.tile_px

    def forward(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, tile_px, tile_px], normalized → float32 [N, width]."""
        return pooled_features(self.model, tiles, self.pooling)


def pooled_features(network: Any, tiles: Tensor, pooling: Pooling) -> Tensor:
    """Features [N, width] of a network on tiles float32 [N, 3, H, W], normalized."""
    if pooling == "network":
        return torch.flatten(network(tiles), 1)
    tokens: Tensor = network.forward_features(tiles)
    if pooling == "cls":
        return tokens[:, 0]
    # Registers stand between the class token and the patches.
    mean = tokens[:, network.num_prefix_tokens :].mean(1)
    return mean if pooling == "mean" else torch.cat([tokens[:, 0], mean], 1)


def build_encoder(recipe: Recipe, weights: Mapping[str, Tensor] | None = None) -> Encoder:
    """Build the encoder, with random weights or those of `load_weights`.

    Parameters
    ----------
    recipe : Recipe
    weights : mapping, optional
        Tensors by the network's names; taken, not copied.

    Returns
    -------
    Encoder
        In eval mode.

    Raises
    ------
    CheckpointError
        If the recipe describes no network, or the weights are not its own.
    """
    if weights is None:
        return Encoder(build_network(recipe), recipe).eval()
    # Without random weights first, a large network would need its memory twice.
    with torch.device("meta"):
        network = build_network(recipe)
    computed = [name for name, _ in network.named_buffers() if name not in weights]
    try:
        if computed:
            network = build_network(recipe)
        network.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights are not those of {recipe.title}; read them with load_weights"
        ) from error
    missing = [name for name in network.state_dict() if name not in weights and name not in computed]
    if missing:
        raise CheckpointError(
            f"the weights of {recipe.title} lack {len(missing)} tensors (first {missing[0]}); "
            "read them with load_weights"
        )
    return Encoder(network, recipe).eval()


def build_network(recipe: Recipe) -> nn.Module:
    """Build the network alone, on torch's default device; raises CheckpointError if that is not possible."""
    try:
        return BUILDERS[recipe.builder](recipe)
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the recipe {recipe.name} describes no network that {recipe.builder} can build ({reason}); "
            "correct its architecture and arguments"
        ) from error


def _timm(recipe: Recipe) -> nn.Module:
    arguments = dict(recipe.arguments)
    if recipe.pooling != "network":
        arguments.setdefault("global_pool", "token")
    return _of_timm(recipe.architecture, arguments)


def _attention_pooled(recipe: Recipe) -> nn.Module:
    pool = {name: value for name, value in recipe.arguments.items() if name.startswith("pool_")}
    others = {name: value for name, value in recipe.arguments.items() if name not in pool}
    trunk = _of_timm(recipe.architecture, {"global_pool": "token", **others})
    if not pool.get("pool_normalized", True):
        trunk.norm = nn.Identity()
    return AttentionPooled(
        trunk,
        recipe.width,
        pool["pool_heads"],
        bias=pool.get("pool_bias", True),
        project=pool.get("pool_project", False),
    )


def _of_timm(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    for name in ("mlp_layer", "act_layer"):
        if name in arguments:
            arguments[name] = LAYERS[arguments[name]]
    if "norm_eps" in arguments:
        arguments["norm_layer"] = partial(timm.layers.LayerNorm, eps=arguments.pop("norm_eps"))
    if architecture.startswith("vit_") and torch.empty(0).is_meta:
        # Weights that have no memory need no values, which are most of the time.
        arguments.setdefault("weight_init", "skip")
    network: nn.Module = timm.create_model(
        architecture, **{"pretrained": False, "num_classes": 0, **arguments}
    )
    return network


def _torchvision(recipe: Recipe) -> nn.Module:
    network: nn.Module = torchvision.models.get_model(recipe.architecture, weights=None)
    last = list(network.named_children())[-1][0]
    setattr(network, last, nn.Identity())
    return network


BUILDERS: dict[str, Callable[[Recipe], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "attention-pooled": _attention_pooled,
    "ctranspath": lambda recipe: build_ctranspath(recipe.architecture, **recipe.arguments),
}


def feature_width(network: nn.Module, name: str) -> int:
    """Features per tile of a network of timm; raises CheckpointError if it does not state them."""
    # Some networks widen once more before the classifier.
    width = getattr(network, "head_hidden_size", None) or getattr(network, "num_features", None)
    if width is None:
        raise CheckpointError(f"timm's {name} does not state its number of features; choose another encoder")
    return int(width)
