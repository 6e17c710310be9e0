"""What a system is: the one description from which it is recognised, rebuilt, exported and run."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

import mclst.models

State = Mapping[str, Tensor]
Kind = Literal["retrieval", "regression", "sequence"]


@dataclass(frozen=True)
class Traits:
    """What the key names and shapes of a checkpoint tell.

    encoder: the image network, for people and for `build`. genes: G. width: features per tile that the image part
    gives: D of a retrieval system, G of a regression, F of a sequence. depth: Transformer blocks.
    attention_width: heads x head_dim, which shapes cannot part; 0 where there is no attention.
    positions: rows of the two position tables; 0 where there are none. others: what else `build` needs.
    """

    encoder: str
    genes: int
    width: int
    depth: int = 0
    attention_width: int = 0
    positions: int = 0
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """A published system.

    name: as `--system` and the manifest spell it. title: as people do.
    kind: "retrieval": `encode_tiles` and `encode_spots` into one space, expression from a bank of measured spots;
        "regression": `encode_tiles` gives expression; "sequence": `encode_tiles` gives features and `predict_expression` makes
        expression of all spots of a slide together.
    claims: whether a state dict looks like one of this system, by decisive key names alone.
    traits: reads a claimed state dict, with the encoder's name where the checkpoint says it; KeyError names the tensor
        that is missing, ValueError says what does not fit.
    build: traits and heads → the network, with random weights, whose `state_dict` has the published names.
    settings: what differs from the defaults of the manifest's Settings, nested as there.
    applies: settings that mean something to it beyond its kind's: "heads", "context", "graph", "symmetries".
    required: settings no checkpoint holds and no default can be given for, as "part.field".
    training_only: prefixes of tensors that inference does not need.
    cut_positions: whether position tables are cut to the rows in use (where they are most of the checkpoint).
    """

    name: str
    title: str
    kind: Kind
    claims: Callable[[State], bool]
    traits: Callable[[State, str | None], Traits]
    build: Callable[[Traits, int], nn.Module]
    settings: Mapping[str, Any] = field(default_factory=dict)
    applies: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()
    training_only: tuple[str, ...] = ()
    cut_positions: bool = False


def systems() -> dict[str, System]:
    """All systems by name: the `SYSTEM` of every file of this folder that has one."""
    found = {}
    for module in pkgutil.iter_modules(mclst.models.__path__):
        system = getattr(importlib.import_module(f"mclst.models.{module.name}"), "SYSTEM", None)
        if isinstance(system, System):
            found[system.name] = system
    return found


def count_blocks(state: State, prefix: str) -> int:
    """Number of distinct indices directly behind `prefix`, such as blocks of a Transformer."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
