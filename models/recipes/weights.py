"""A recipe's weights from a local file, recognized by names and shapes."""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mclst.models.recipes.build import build_network
from mclst.models.recipes.find import RECIPES
from mclst.models.recipes.key_names import State, as_timm, has_timms_names, unwrap
from mclst.models.recipes.pooled_names import as_pooled
from mclst.models.recipes.recipe import Positions, Recipe
from mclst.models.recipes.weights_file import read_weights_file
from mclst.runtime.errors import CheckpointError

FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
"""Weights in a folder, as huggingface.co keeps it, best first."""
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
NOT_OF_FEATURES = re.compile(
    r"^(head|classifier|fc|last_linear|heads|pooler|mask_token|dino_head|ibot_head|embeddings\.mask_token"
    r"|text|text_decoder|logit_scale|attn_pool_caption|ln_caption)(\.|$)"
)
"""Tensors beside the network: classifiers, training heads and text towers."""
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
"""torchvision's file of DenseNet-121 has `norm.1` where its network has `norm1`."""

TWINS = {
    "uni": "phikon-v2",
    "h-optimus-0": "openmidnight",
    "h-optimus-1": "openmidnight",
    "h0-mini": "hibou-b",
    "kaiko-vitb16": "phikon",
}
"""Encoders published under timm's names, and the one of the same shapes whose file has other names."""


def load_weights(recipe: Recipe, path: str | Path) -> State:
    """Read an encoder's weights under the names of its network.

    Parameters
    ----------
    recipe : Recipe
    path : str or Path
        A .pth, .bin, .pt, .ckpt or .safetensors file, or a folder that has one.

    Returns
    -------
    dict of str to Tensor
        float32 (integers as they are); tensors of the file are memory-mapped where its format allows.

    Raises
    ------
    CheckpointError
        If the file holds no tensors, or not those of this encoder; another known encoder is named.
    """
    path = Path(path)
    tensors = read_tensors(path)
    state, problems = fit(recipe, tensors)
    if not problems and recipe.name in TWINS and not has_timms_names(tensors):
        twin = RECIPES[TWINS[recipe.name]]
        raise CheckpointError(
            f"{path} holds tensors under the names of {twin.title}'s file, not of {recipe.title}'s; give "
            f"--encoder {twin.name}, or {recipe.title}'s own file"
        )
    if problems:
        # On the meta device, so that nothing is copied for encoders that it is not.
        shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
        others = [other.title for other in RECIPES.values() if other != recipe and not fit(other, shapes)[1]]
        if others:
            names = " or ".join(others)
            raise CheckpointError(f"{path} holds the weights of {names}, not of {recipe.title}; give {names}")
        raise CheckpointError(
            f"{path} does not hold the weights of {recipe.title}: {'; '.join(problems)}; give its own file"
        )
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor = tensor.float()
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{path}: {name} holds values that are not finite; use another file")
    return state


def read_tensors(path: Path) -> State:
    """Tensors of a file, a folder or an index of shards, as they are named there, without prefixes."""
    if os.path.isdir(path):
        path = _file_in(path)
    if path.name.endswith(".index.json"):
        state: State = {}
        for shard in _shards(path):
            state |= unwrap(read_weights_file(shard, "--weights"))
    else:
        state = unwrap(read_weights_file(path, "--weights"))
    if not state:
        raise CheckpointError(f"{path} holds no tensors; give the encoder's state dict")
    return state


def _file_in(folder: Path) -> Path:
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES and f.is_file())
    if len(others) == 1:
        return others[0]
    what = f"{len(others)} files of weights ({others[0].name}, …)" if others else "no file of weights"
    raise CheckpointError(f"{folder} has {what}; give the file itself with --weights")


def _shards(index: Path) -> list[Path]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        shards = sorted({str(name) for name in names})
    except OSError as error:
        raise CheckpointError(
            f"{index} cannot be read ({error.strerror or error}); check --weights"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of weights; give the file of weights itself") from error
    for name in shards:
        if Path(name).name != name:
            raise CheckpointError(
                f"{index} names {name!r}, outside its folder; give the file of weights itself"
            )
    return [index.parent / name for name in shards]


def fit(recipe: Recipe, tensors: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Bring tensors to the names and grid of a recipe's network.

    Returns
    -------
    state : dict
        Complete if `problems` is empty.
    problems : list of str
        What does not fit, for a message.
    """
    expected = expected_shapes(recipe)
    state = _renamed(recipe, dict(tensors), expected)
    state = {name: t for name, t in state.items() if name in expected or not NOT_OF_FEATURES.match(name)}
    problems = []
    if problem := _fit_positions(recipe, state, expected):
        problems.append(problem)
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in expected]
    misshapen = [
        f"{name} is {list(state[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in state
        and tuple(state[name].shape) != shape
        and not (problems and name.endswith("pos_embed"))
    ]
    for names, what in (
        (missing, f"{len(missing)} of {len(expected)} tensors are missing"),
        (extra, f"{len(extra)} tensors do not belong"),
        (misshapen, f"{len(misshapen)} have another shape"),
    ):
        if names:
            problems.append(f"{what} ({names[0]}{', …' if len(names) > 1 else ''})")
    if not problems:
        for name in expected:
            state.setdefault(name, torch.zeros((), dtype=torch.int64))
    return state, problems


def _renamed(recipe: Recipe, state: State, expected: Mapping[str, tuple[int, ...]]) -> State:
    if recipe.builder == "torchvision":
        return {OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in state.items()}
    if recipe.builder == "attention-pooled":
        return as_pooled(state, project=bool(recipe.arguments.get("pool_project")))
    blocks: Counter[str] = Counter()
    for stage, _ in {
        tuple(name.split(".")[1:3]) for name in expected if re.match(r"blocks\.\d+\.\d+\.", name)
    }:
        blocks[stage] += 1
    return as_timm(state, {stage: blocks[stage] for stage in sorted(blocks, key=int)})


def _fit_positions(recipe: Recipe, state: State, expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """Resample position embeddings in place as the recipe says; a problem if it says not to."""
    name = next((n for n in ("pos_embed", "trunk.pos_embed") if n in expected), "")
    positions, shape = state.get(name), expected.get(name)
    if positions is None or shape is None or positions.ndim != 3 or tuple(positions.shape) == shape:
        return None
    prefix = 0 if round(shape[1] ** 0.5) ** 2 == shape[1] else 1
    old, new = round((positions.shape[1] - prefix) ** 0.5), round((shape[1] - prefix) ** 0.5)
    if old**2 + prefix != positions.shape[1] or positions.shape[2] != shape[2]:
        return None
    if recipe.positions == "fixed":
        return (
            f"its position embeddings are for a grid of {old} × {old} patches, not {new} × {new}, "
            "and the recipe has them fixed"
        )
    state[name] = resample_positions(positions.float(), prefix, old, new, recipe.positions)
    return None


def resample_positions(positions: Tensor, prefix: int, old: int, new: int, how: Positions) -> Tensor:
    """Resample position embeddings [1, prefix + old², C] to [1, prefix + new², C].

    Notes
    -----
    "bicubic" and "bicubic-antialias" are those of transformers' Dinov2 without and with registers, and of
    timm. "bicubic-dino" is that of DINO, whose scale is (new + 0.1) / old.
    """
    grid = torch.unflatten(positions[:, prefix:], 1, (old, old)).permute(0, 3, 1, 2)
    if how == "bicubic-dino":
        scale = (new + 0.1) / old
        grid = nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    else:
        grid = nn.functional.interpolate(
            grid, (new, new), mode="bicubic", align_corners=False, antialias=how == "bicubic-antialias"
        )
    return torch.cat([positions[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


@functools.lru_cache(maxsize=64)
def _shapes_by_name(name: str) -> dict[str, tuple[int, ...]]:
    return _shapes(RECIPES[name])


def _shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in build_network(recipe).state_dict().items()}


def expected_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network's tensors, without building it in memory."""
    return _shapes_by_name(recipe.name) if RECIPES.get(recipe.name) == recipe else _shapes(recipe)
