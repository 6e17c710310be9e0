"""A recipe by its name, by timm's name, or from a YAML file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from mclst.models.recipes import imagenet, pathology
from mclst.models.recipes.recipe import Recipe
from mclst.models.recipes.yaml_file import read_recipe
from mclst.runtime.errors import CheckpointError

RECIPES = {recipe.name: recipe for recipe in (*pathology.RECIPES, *imagenet.RECIPES)}


def recipe_names() -> list[str]:
    """Return the names of all recipes in the table, sorted."""
    return sorted(RECIPES)


def find_recipe(name: str | Path) -> Recipe:
    """Return the recipe of that name.

    Parameters
    ----------
    name : str or Path
        Of the table; a YAML file (.yaml, .yml); or a network of timm, whose pooling and constants are timm's.

    Returns
    -------
    Recipe

    Raises
    ------
    CheckpointError
        If there is none, or the file is no recipe.
    """
    text = str(name)
    if text.lower().endswith((".yaml", ".yml")):
        return read_recipe(Path(name))
    recipe = RECIPES.get(text) or _of_timm(text)
    if recipe is None and (hub := _of_hub(text)):
        raise CheckpointError(
            f"{text} names a repository, and mclst downloads no weights; fetch its file, then give "
            f"--encoder {hub} --weights FILE"
        )
    if recipe is None:
        near = difflib.get_close_matches(text, recipe_names(), n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"choose {', '.join(recipe_names())},"
        raise CheckpointError(
            f"there is no encoder {text!r}; {advice} or give a network of timm or a recipe's .yaml file"
        )
    return recipe


def _of_hub(name: str) -> str:
    """The recipe of an encoder's repository at huggingface.co, as timm and the hub name it; else ""."""
    repository = name.removeprefix("hf-hub:").removeprefix("hf://").lower()
    sources = {recipe.source.lower().removeprefix("huggingface.co/"): key for key, recipe in RECIPES.items()}
    return sources.get(repository, "NAME" if name.startswith(("hf-hub:", "hf://")) else "")


def _of_timm(name: str) -> Recipe | None:
    """A network of timm as timm configures it; None if timm has no such network."""
    import timm
    import torch

    from mclst.models.recipes.build import feature_width

    if not timm.is_model(name):
        return None
    with torch.device("meta"):
        network: Any = timm.create_model(name, pretrained=False, num_classes=0)
    resolve: Any = timm.data.resolve_model_data_config
    config: dict[str, Any] = resolve(network)
    return Recipe(
        name=name,
        title=name,
        family="timm",
        builder="timm",
        architecture=name,
        width=feature_width(network, name),
        parameters=sum(p.numel() for p in network.parameters()),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        tile_px=int(config["input_size"][-1]),
        interpolation="bicubic" if config["interpolation"] == "bicubic" else "bilinear",
        license=str(network.pretrained_cfg.get("license") or ""),
        source="timm",
    )
