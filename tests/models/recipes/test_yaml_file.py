"""A recipe of one's own is checked before anything is built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.recipe import Recipe
from mclst.runtime.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[3]
VALID = {
    "name": "mine",
    "builder": "timm",
    "architecture": "vit_tiny_patch16_224",
    "arguments": {"depth": 1, "img_size": 32},
    "pooling": "cls+mean",
    "width": 384,
    "tile_px": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def write(folder: Path, content: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_a_recipe_counts_its_parameters_and_survives_a_checkpoint(tmp_path: Path) -> None:
    recipe = find_recipe(write(tmp_path, VALID))
    block = 2 * 2 * 192 + 192 * 576 + 576 + 192 * 192 + 192 + 2 * 192 * 768 + 768 + 192
    assert recipe.parameters == block + 192 * (768 + 1) + 192 * (4 + 1) + 192 + 2 * 192
    assert (recipe.title, recipe.resize_px, recipe.redistributable) == ("mine", 32, False)
    assert Recipe.from_record(recipe.record()) == recipe


def test_the_example_in_the_docs_is_a_recipe(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "encoders.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    recipe = find_recipe(write(tmp_path, example))
    assert (recipe.width, recipe.resize_px, recipe.parameters) == (1024, 256, 303_350_784)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "mean is None; give three numbers"),
        ({"std": [0.5, 0.5]}, "give three numbers"),
        ({"std": [0.5, 0.0, 0.5]}, "has to be above 0"),
        ({"mean": ["a", 0, 0]}, "mean holds 'a', not a number"),
        ({"pooling": "max"}, "pooling is 'max'; choose network, cls, mean, cls+mean"),
        ({"builder": "eval"}, "builder is 'eval'; choose"),
        ({"mlp": 1}, "a recipe has no mlp; the fields are"),
        ({"parameters": 7}, "a recipe has no parameters"),
        ({"width": 192}, "gives 384 features and width is 192"),
        ({"width": True}, "width is True; give a whole number"),
        ({"tile_px": 224}, "does not take tiles of 224 px"),
        ({"resize_px": 16}, "resize_px is below tile_px"),
        ({"architecture": "no_such_network"}, "describes no network that timm can build"),
        ({"architecture": 3}, "architecture is 3, not text"),
        ({"arguments": {"mlp_layer": "os.system"}}, "describes no network"),
        ({"arguments": [1]}, "arguments is no mapping"),
        ({"redistributable": "yes, please"}, "give true or false"),
        ({"fov_um": "wide"}, "fov_um holds 'wide', not a number"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        find_recipe(write(tmp_path, VALID | change))


@pytest.mark.parametrize("name", ["mean", "std", "width", "architecture", "builder", "name"])
def test_what_nothing_can_replace_is_required(tmp_path: Path, name: str) -> None:
    content = {key: value for key, value in VALID.items() if key != name}
    with pytest.raises(CheckpointError, match=f"has no {name}, which nothing can replace"):
        find_recipe(write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a list", "no mapping of names to values"),
        ("name: [", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        ("x" * (1 << 17), "more than 16384 bytes"),
        ("[" * 300, "is not YAML"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_recipe(write(tmp_path, content))


@settings(max_examples=25)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=4))
def test_any_value_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("mean", "std", "fov_um", "resize_px", "gated", "note", "positions", "pooling"):
        path = write(folder, VALID | {name: value, "architecture": "no_such_network"})
        # The network is built last, so a field that is taken ends there.
        with pytest.raises(CheckpointError, match=r"mine(\.yaml| describes)"):
            find_recipe(path)
