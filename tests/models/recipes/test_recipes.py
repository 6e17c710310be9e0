"""Every recipe builds the network that its table describes."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from mclst.benchmarks.recipes.two_blocks import two_blocks
from mclst.models.recipes.build import build_encoder
from mclst.models.recipes.find import RECIPES, find_recipe, recipe_names
from mclst.models.recipes.recipe import Recipe
from mclst.models.recipes.resize import fit_tiles
from mclst.runtime.errors import CheckpointError


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_the_table_is_the_network(recipe: Recipe) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build_encoder(recipe).parameters()) == recipe.parameters
        features = build_encoder(two_blocks(recipe.name))(torch.zeros(2, 3, recipe.tile_px, recipe.tile_px))
    assert features.shape == (2, recipe.width)
    assert recipe.title and recipe.license and recipe.source
    assert min(recipe.std) > 0 and recipe.resize_px >= recipe.tile_px


def test_any_network_of_timm_is_a_recipe_with_timms_constants() -> None:
    recipe = find_recipe("vit_small_patch16_224")
    assert (recipe.width, recipe.tile_px, recipe.parameters) == (384, 224, 22_050_664 - 385_000)
    assert recipe.mean == recipe.std == (0.5, 0.5, 0.5)


def test_a_name_that_is_none_names_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"no encoder 'uni3'; did you mean .*uni"):
        find_recipe("uni3")
    assert "uni" in recipe_names()


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("hf-hub:MahmoodLab/UNI2-h", "uni2-h"),
        ("bioptimus/H-optimus-0", "h-optimus-0"),
        ("hf-hub:me/mine", "NAME"),
    ],
)
def test_a_repository_leads_to_its_recipe(name: str, encoder: str) -> None:
    with pytest.raises(CheckpointError, match=f"downloads no weights; .* --encoder {encoder} --weights FILE"):
        find_recipe(name)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resized", "cropped"), [(64, 37, 32), (40, 64, 56), (48, 48, 32)])
def test_resizing_is_torchvisions(size: int, resized: int, cropped: int, interpolation: str) -> None:
    tiles = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    transform = v2.Compose(
        [
            v2.Resize(resized, InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(cropped),
        ]
    )
    actual = fit_tiles(size, resized, cropped, interpolation)(tiles)  # type: ignore[arg-type]
    torch.testing.assert_close(actual, transform(tiles), rtol=0, atol=2e-6)
