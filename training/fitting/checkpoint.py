"""The checkpoint of a fitted head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mclst.models.fitted import HEAD, PROJECTION
from mclst.runtime.bundle.manifest import (
    CHECKPOINT_FORMAT,
    Neighborhood,
    Normalization,
    Retrieval,
    Settings,
)
from mclst.training.checkpoint import save_atomically
from mclst.training.fitting.features import EncoderSetup
from mclst.training.fitting.folds import Folds
from mclst.training.fitting.heads import FittedHead, OutOfFold

HALF_LIMIT = 6e4
OUT_OF_FOLD_BYTES = 256 << 20
"""Most bytes of out-of-fold predictions in a checkpoint; beyond it, spots are left out evenly."""


@dataclass(frozen=True)
class WeightsFile:
    """The file of the encoder's weights; sha256: of it. included: whether the checkpoint holds them."""

    name: str
    sha256: str
    included: bool = True


@dataclass(frozen=True)
class FittedModel:
    """All that a checkpoint of a fitted head holds; see `checkpoint_content`.

    spots: per block, in block order. truth: float32 [n, G] per block. record: further plain values for `fit`.
    tiles: uint8 [t, S, S, 3].
    """

    setup: EncoderSetup
    head: FittedHead
    folds: Folds
    sections: tuple[str, ...]
    spots: tuple[tuple[str, ...], ...]
    truth: tuple[NDArray[np.float32], ...]
    genes: tuple[str, ...]
    units: str
    context_um: float | None
    weights: WeightsFile
    record: Mapping[str, Any]
    tiles: NDArray[np.uint8]


def checkpoint_content(model: FittedModel) -> dict[str, Any]:
    """Content of a checkpoint: tensors and plain values, so that torch reads it with weights_only=True.

    format: CHECKPOINT_FORMAT.
    model: state dict of `mclst.models.fitted.Fitted`: `encoder.*`, absent by reference; `head.weight`
        [D + P, V·F], `head.bias`, and with a context `head_context.weight` [D + P, F]; with a bank
        `projection` in place of `head`.
    config: the bundle's Settings.
    genes: [str], G.
    fit: recipe, views, context_um, prediction_dim (P: 0 or G), head, alpha (one, or a list: of the
        expression's components, then of the rest), components, folds, block_sizes, scores,
        sections {name: spots}, weights {name, sha256, included, tensors_sha256}.
    bank: with a bank {embedding float32 [M, D], expression float32 [M, G], spot [str], section [str]}; with a
        prediction the expression is that of the residuals.
    gallery: without a bank, embedding float32 [≤ 4096, D] of training spots, to measure distances to.
    out_of_fold: [{section, fold, step, prediction [n, G], truth [n, G], distance float32 [n]}], one record a
        block, predicted without the fold, of every step-th spot; float16 where the values allow. distance: of
        the spot's embedding to the nearest training spot of the other folds, by `retrieval.distance` with a
        bank, else Euclidean.
    tiles: uint8 [t, S, S, 3], for the parity check of the export.
    """
    head, setup = model.head, model.setup
    content: dict[str, Any] = {
        "format": CHECKPOINT_FORMAT,
        "model": _state(model),
        "config": settings_of(model).model_dump(mode="json"),
        "genes": list(model.genes),
        "fit": {
            "recipe": setup.recipe.record(),
            "views": list(setup.views),
            "context_um": model.context_um,
            "prediction_dim": head.prediction_dim,
            "alpha": None if head.penalty is None else head.penalty.record(),
            "components": head.components,
            "folds": model.folds.text,
            "block_sizes": [len(spots) for spots in model.spots],
            "weights": {**asdict(model.weights), "tensors_sha256": setup.weights_sha256},
            **model.record,
        },
        "out_of_fold": out_of_fold_records(model),
        "tiles": torch.from_numpy(model.tiles),
    }
    if head.bank_expression is not None:
        sections = [model.sections[block.section] for block in model.folds.blocks]
        content["bank"] = {
            "embedding": torch.from_numpy(head.embedding),
            "expression": torch.from_numpy(head.bank_expression),
            "spot": [spot for spots in model.spots for spot in spots],
            "section": [name for name, spots in zip(sections, model.spots, strict=True) for _ in spots],
        }
    elif head.gallery is not None:
        content["gallery"] = torch.from_numpy(head.embedding[head.gallery])
    return content


def settings_of(model: FittedModel) -> Settings:
    """Settings of the bundle."""
    fields: dict[str, Any] = {
        "tile": model.setup.tile,
        "preprocessing": model.setup.preprocessing,
        "normalization": Normalization.of("none", model.units),
    }
    if model.context_um is not None:
        fields["neighborhood"] = Neighborhood(radius_um=model.context_um)
    if model.head.retrieval is not None:
        fields["retrieval"] = Retrieval(**asdict(model.head.retrieval))
    return Settings(**fields)


def _state(model: FittedModel) -> dict[str, Tensor]:
    layer, weight = HEAD if model.head.retrieval is None else PROJECTION, model.head.layer.weight
    state = {f"encoder.model.{name}": tensor for name, tensor in model.setup.state.items()}
    if not model.weights.included:
        state = {}
    own = model.setup.width
    state[f"{layer}.weight"] = torch.from_numpy(weight[:, :own].astype(np.float32))
    state[f"{layer}.bias"] = torch.from_numpy(model.head.layer.bias.astype(np.float32))
    if model.context_um is not None:
        state[f"{layer}_context.weight"] = torch.from_numpy(weight[:, own:].astype(np.float32))
    return state


def out_of_fold_records(model: FittedModel) -> list[dict[str, Any]]:
    """Out-of-fold predictions beside the truth, one record per block."""
    blocks = list(zip(model.folds.blocks, model.head.out_of_fold, model.truth, strict=True))
    spots = sum(len(item.distance) for _, item, _ in blocks)
    step = max(1, -(-spots * len(model.genes) * 8 // OUT_OF_FOLD_BYTES))
    return [
        {
            "section": model.sections[block.section],
            "fold": block.fold,
            "step": step,
            "prediction": _compact(item.prediction[::step]),
            "truth": _compact(truth[::step]),
            "distance": torch.from_numpy(np.ascontiguousarray(item.distance[::step])),
        }
        for block, item, truth in blocks
    ]


def _compact(values: NDArray[np.float32]) -> Tensor:
    half = np.abs(values).max(initial=0) < HALF_LIMIT
    return torch.from_numpy(np.ascontiguousarray(values.astype(np.float16 if half else np.float32)))


def write_fitted(path: Path, model: FittedModel) -> Path:
    """Write the checkpoint atomically; raises OutputError."""
    return save_atomically(path, checkpoint_content(model))


def joined(items: Sequence[OutOfFold], numbers: Sequence[int]) -> NDArray[np.float32]:
    """Predictions of several blocks, one after the other."""
    return np.concatenate([items[number].prediction for number in numbers])
