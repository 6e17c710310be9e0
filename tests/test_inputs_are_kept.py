"""No command replaces what it reads, whichever of its options names it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from all_commands import command_of, commands, is_path, others, spelled
from click.testing import CliRunner

from mclst.runtime.click_types import OUTPUTS

TEXT_INPUTS = {
    "eval --encoder": "map.h5ad --truth other --encoder recipe.yaml --weights w --json recipe.yaml",
    "eval --image": "map.h5ad --truth other --image A1=victim --json victim",
    "eval --annotation": "map.h5ad --truth other --annotation A1=victim --json victim",
    "eval --baseline": "map.h5ad --truth other --baseline b=victim --json victim",
    "eval [METHOD=]MAP": "a=victim --truth other --json victim",
    "eval manifest of --bundle": "map.h5ad --truth other --bundle folder --json folder/manifest.json",
    "fit --encoder": "other --encoder recipe.yaml --weights w --json recipe.yaml",
    "fit --groups": "other --encoder uni --weights w --groups victim --json victim",
    "fit --out": "folder --encoder uni --weights w --out folder/manifest.json",
    "train --encoder": "other --encoder recipe.yaml --json recipe.yaml",
    "train --out": "folder --out folder/manifest.json",
    "export inside --reference": "--ckpt other --reference folder --json folder/manifest.json",
    "export --image": "--ckpt other --image A1=victim --json victim",
    "bench accuracy --fit": "other --fit '--encoder uni --weights=victim' --json victim",
    "bench accuracy --train": "other --train '--init victim' --json victim",
    "bench page --out": "victim --out victim",
}


def reads(parameter: click.Parameter) -> bool:
    return (
        is_path(parameter) and parameter.name not in OUTPUTS and parameter.name != "slides"
    )  # see test_cohort


def inputs() -> Iterator[str]:
    for name in commands():
        parameters = command_of(name).params
        if {"json_path", "overwrite"} <= {parameter.name for parameter in parameters}:
            yield from (f"{name} {spelled(parameter)}" for parameter in parameters if reads(parameter))


def refuse(name: str, words: list[str]) -> None:
    root, *parts = name.split()
    done = CliRunner().invoke(command_of(root), [*parts, *words, "--overwrite"])
    assert done.exit_code == 5 and "would be lost" in done.stderr, done.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("victim", "other", "recipe.yaml", "folder/manifest.json"):
        (tmp_path / name).write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(tmp_path.rglob("*")) == before
    assert all(path.read_text() == "precious" for path in before if path.is_file())


@pytest.mark.parametrize("which", [*inputs()])
def test_a_path_that_is_read_is_never_written(here: Path, which: str) -> None:
    name, option = which.rsplit(" ", 1)
    own = [option, "victim"] if option.startswith("-") else ["victim"]
    refuse(name, [*own, *others(which, name, option), "--json", "victim"])


@pytest.mark.parametrize("which", TEXT_INPUTS)
def test_a_path_within_another_text_is_never_written(here: Path, which: str) -> None:
    name = " ".join(which.split()[: 2 if which.startswith("bench") else 1])
    refuse(name, shlex.split(TEXT_INPUTS[which]))
