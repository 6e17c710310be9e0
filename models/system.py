"""One description per published system: how to recognize, rebuild and export its checkpoints."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

import mclst.models

State = Mapping[str, Tensor]
Kind = Literal["retrieval", "regression", "slide"]


@dataclass(frozen=True)
class Traits:
    """Architecture read from a checkpoint's key names and shapes.

    Parameters
    ----------
    encoder : str
        Name of the image network.
    genes : int
        Number of genes, G.
    width : int
        Values per tile from `encode_tiles`: size of an embedding, G, or size of a slide system's features.
    depth : int
        Transformer blocks.
    attention_width : int
        heads x head_dim, which shapes cannot tell apart; 0 without attention.
    positions : int
        Rows of each of the two position tables; 0 without tables.
    prediction : int
        Values per tile beside the embedding that are expression already: G, or 0.
    extra : mapping
        Further arguments of `System.build`.
    """

    encoder: str
    genes: int
    width: int
    depth: int = 0
    attention_width: int = 0
    positions: int = 0
    prediction: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A published system.

    Parameters
    ----------
    name : str
        Name in `--system` and in the manifest.
    title : str
        Name in messages.
    kind : {"retrieval", "regression", "slide"}
        "retrieval": `encode_tiles` and `encode_spots` map into one space, a bank gives expression.
        "regression": `encode_tiles` returns expression.
        "slide": `encode_tiles` returns features, `predict_expression` maps those of a slide to expression.
    claims : callable
        Whether a state dict belongs to this system, from decisive key names alone.
    traits : callable
        (state, encoder's name, its recipe or None) → Traits. Raises KeyError naming a missing tensor, else
        ValueError.
    build : callable
        (traits, heads) → network with random weights and the published key names.
    settings : mapping
        Differences from the defaults of the manifest's `Settings`, nested as there.
    supports : frozenset of str
        Settings beyond those of its kind: "heads", "context", "graph", "symmetries".
    required : tuple of str
        Settings without a default that no checkpoint stores, as "part.field".
    training_only : tuple of str
        Prefixes of tensors that inference does not use.
    cut_positions : bool
        Whether to load only the used rows of the position tables.
    fixed : frozenset of str
        Parts of `Settings` that an export cannot override.
    complete : callable, optional
        (traits, metadata) → Traits with what only mclst's own checkpoint holds. Raises as `traits` does.
    """

    name: str
    title: str
    kind: Kind
    claims: Callable[[State], bool]
    traits: Callable[[State, Any], Traits]
    build: Callable[[Traits, int], nn.Module]
    settings: Mapping[str, Any] = field(default_factory=dict)
    supports: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()
    training_only: tuple[str, ...] = ()
    cut_positions: bool = False
    fixed: frozenset[str] = frozenset()
    complete: Callable[[Traits, Mapping[str, Any]], Traits] | None = None


def systems() -> dict[str, System]:
    """Return all systems by name: the `SYSTEM` of each module in this folder that has one."""
    registry = {}
    for module in pkgutil.iter_modules(mclst.models.__path__):
        system = getattr(importlib.import_module(f"mclst.models.{module.name}"), "SYSTEM", None)
        if isinstance(system, System):
            registry[system.name] = system
    return registry


def count_blocks(state: State, prefix: str) -> int:
    """Count the distinct indices right after `prefix`, such as Transformer blocks."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
