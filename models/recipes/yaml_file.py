"""A recipe of one's own, as a small YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from mclst.models.recipes.recipe import Builder, Interpolation, Pooling, Positions, Recipe
from mclst.runtime.errors import CheckpointError

REQUIRED = ("name", "builder", "architecture", "width", "mean", "std")
CHOICES = {
    "builder": get_args(Builder),
    "pooling": get_args(Pooling),
    "interpolation": get_args(Interpolation),
    "positions": get_args(Positions),
}
MAX_BYTES = 1 << 14


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; the fields are those of `Recipe`, `parameters` is counted.

    Raises
    ------
    CheckpointError
        If the file cannot be read, a field is missing, unknown or has no such value.
    """
    fields = _read_mapping(path)
    known = set(Recipe.__dataclass_fields__) - {"parameters"}
    if unknown := sorted(set(map(str, fields)) - known):
        raise CheckpointError(
            f"{path}: a recipe has no {unknown[0]}; the fields are {', '.join(sorted(known))}"
        )
    for name in REQUIRED:
        if name not in fields:
            raise CheckpointError(f"{path} has no {name}, which nothing can replace; add it")
    for name, choices in CHOICES.items():
        if name in fields and fields[name] not in choices:
            raise CheckpointError(f"{path}: {name} is {fields[name]!r}; choose {', '.join(choices)}")
    for name in ("mean", "std"):
        fields[name] = _per_channel(path, name, fields[name])
    if min(fields["std"]) <= 0:
        raise CheckpointError(f"{path}: std is {list(fields['std'])}; each has to be above 0")
    for name in ("width", "tile_px", "resize_px"):
        value = fields.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 20:
            raise CheckpointError(f"{path}: {name} is {value!r}; give a whole number above 0")
    if fields.get("fov_um") is not None:
        fields["fov_um"] = _number(path, "fov_um", fields["fov_um"])
    if fields.get("resize_px", 1 << 20) < fields.get("tile_px", 224):
        raise CheckpointError(f"{path}: resize_px is below tile_px, which is cut out of it; correct one")
    if not isinstance(fields.get("arguments", {}), dict):
        raise CheckpointError(f"{path}: arguments is no mapping of names to values; correct it")
    for name in ("name", "title", "family", "architecture", "license", "source", "note"):
        if not isinstance(fields.get(name, ""), str):
            raise CheckpointError(f"{path}: {name} is {fields[name]!r}, not text; correct it")
    for name in ("redistributable", "gated"):
        if not isinstance(fields.get(name, False), bool):
            raise CheckpointError(f"{path}: {name} is {fields[name]!r}; give true or false")
    return _counted(Recipe(**{"title": fields["name"], "family": "own", "parameters": 0, **fields}), path)


def _counted(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with its number of parameters; CheckpointError if it does not give `width` features."""
    from dataclasses import replace

    import torch

    from mclst.models.recipes.build import build_encoder

    with torch.device("meta"):
        encoder = build_encoder(recipe)
        tiles = torch.zeros(1, 3, recipe.tile_px, recipe.tile_px)
        try:
            features = encoder(tiles)
        except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path}: the network does not take tiles of {recipe.tile_px} px with pooling "
                f"{recipe.pooling} ({reason}); correct tile_px, pooling or arguments"
            ) from error
    if features.shape != (1, recipe.width):
        raise CheckpointError(
            f"{path}: the network gives {features.shape[-1]} features and width is {recipe.width}; correct it"
        )
    return replace(recipe, parameters=sum(p.numel() for p in encoder.parameters()))


def _read_mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_BYTES} bytes, as no recipe does; give a recipe")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); check --encoder"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not YAML ({reason}); correct it") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no mapping of names to values, which a recipe is; correct it")
    return content


def _per_channel(path: Path, name: str, values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3:
        raise CheckpointError(f"{path}: {name} is {values!r}; give three numbers, for red, green and blue")
    red, green, blue = (_number(path, name, value) for value in values)
    return red, green, blue


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e6:
        raise CheckpointError(f"{path}: {name} holds {value!r}, not a number; correct it")
    return float(value)
