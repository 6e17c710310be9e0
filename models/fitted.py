"""A head fitted on the features of a frozen encoder by `mclst-fit`: its own format, regression and retrieval.

Everything behind the features is linear, so it is one layer. `head` gives [embedding | expression] of a
regression; `projection` gives [embedding | prediction] of a retrieval, whose bank the checkpoint carries.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mclst.models.recipes.build import build_encoder
from mclst.models.recipes.recipe import Recipe
from mclst.models.system import Kind, State, System, Traits
from mclst.models.views import Views

HEAD, PROJECTION = "head", "projection"


class FeatureEncoder(nn.Module):
    """A frozen encoder over its views, without a head.

    Parameters
    ----------
    recipe : Recipe
    views : sequence of float
        Fields of view, as multiples of the recipe's own.
    encoder : nn.Module, optional
        Of the recipe; built with random weights by default.
    """

    def __init__(self, recipe: Recipe, views: Sequence[float], encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder: nn.Module = build_encoder(recipe) if encoder is None else encoder
        self.views = Views(recipe.tile_px, views, recipe.interpolation)

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, S, S], preprocessed → float32 [N, views x width]."""
        return self.views.encode(self.encoder, tiles)


class Fitted(FeatureEncoder):
    """A frozen encoder over its views, and one linear layer.

    Parameters
    ----------
    recipe : Recipe
    views : sequence of float
        Fields of view, as multiples of the recipe's own.
    outputs : int
        Values of the linear layer.
    context : bool
        Whether a second block follows, which is averaged over the neighboring spots.
    layer : {"head", "projection"}
        Name of the linear layer.
    encoder : nn.Module, optional
        Of the recipe; built with random weights by default.
    """

    def __init__(
        self,
        recipe: Recipe,
        views: Sequence[float],
        outputs: int,
        *,
        context: bool,
        layer: str,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__(recipe, views, encoder)
        self.layer, self.context = layer, context
        self.width, self.base = recipe.width, base_view(views)
        setattr(self, layer, nn.Linear(recipe.width * len(views), outputs))
        if context:
            setattr(self, f"{layer}_context", nn.Linear(recipe.width, outputs, bias=False))

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        """float32 [N, 3, S, S], preprocessed → float32 [N, outputs], or [N, own | context]."""
        features = super().encode_tiles(tiles)
        own: Tensor = getattr(self, self.layer)(features)
        if not self.context:
            return own
        base = features[:, self.base * self.width : (self.base + 1) * self.width]
        return torch.cat([own, getattr(self, f"{self.layer}_context")(base)], 1)


def base_view(views: Sequence[float]) -> int:
    """Number of the view that a spot's neighbors contribute: the one closest to the encoder's own."""
    return min(range(len(views)), key=lambda i: (abs(views[i] - 1), i))


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: names, types, shapes and values, in the order of the names, whatever the file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _traits(state: State, encoder: str | None, layer: str) -> Traits:
    outputs = len(state[f"{layer}.bias"])
    return Traits(encoder="", genes=outputs, width=outputs, extra={"layer": layer})


def _complete(traits: Traits, metadata: Mapping[str, Any]) -> Traits:
    """Add recipe, views and the split of the outputs, which the checkpoint holds beside its weights."""
    fit = metadata["fit"]
    recipe, views = Recipe.from_record(fit["recipe"]), tuple(float(view) for view in fit["views"])
    genes, predicted = len(metadata["genes"]), int(fit["prediction_dim"])
    if not views or predicted not in (0, genes) or predicted >= traits.width:
        raise ValueError("its views or outputs do not fit its weights")
    return dataclasses.replace(
        traits,
        encoder=recipe.name,
        genes=genes,
        width=traits.width - predicted,
        prediction=predicted,
        extra={**traits.extra, "recipe": recipe, "views": views, "context": fit["context_um"] is not None},
    )


def _build(traits: Traits, heads: int) -> Fitted:
    extra = traits.extra
    return Fitted(
        extra["recipe"],
        extra["views"],
        traits.width + traits.prediction,
        context=extra["context"],
        layer=extra["layer"],
    )


def fitted_system(name: str, title: str, kind: Kind, layer: str) -> System:
    """A system whose linear layer has this name."""
    return System(
        name=name,
        title=title,
        kind=kind,
        claims=lambda state: f"{layer}.bias" in state and any(n.startswith("encoder.model.") for n in state),
        traits=partial(_traits, layer=layer),
        complete=_complete,
        build=_build,
        settings={"normalization": {"input": "none"}},
        fixed=frozenset({"tile", "preprocessing", "normalization"}),
    )


SYSTEM = fitted_system("fitted", "a fitted head", "regression", HEAD)
