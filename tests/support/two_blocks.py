"""Recipes at full width with two blocks, small enough to run."""

from __future__ import annotations

from dataclasses import replace

from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.recipe import Recipe


def two_blocks(name: str) -> Recipe:
    """The recipe with two blocks; convolutional networks stay whole."""
    recipe = find_recipe(name)
    if recipe.architecture.startswith("swin"):
        return replace(recipe, arguments={**recipe.arguments, "depths": (2, 1, 1, 1)})
    if recipe.architecture.startswith("vit"):
        return replace(recipe, arguments={**recipe.arguments, "depth": 2})
    return recipe
