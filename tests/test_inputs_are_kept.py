"""No command replaces what it reads, whichever of its options names it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mclst.runtime.cli.bundle_options import BundleType
from mclst.runtime.cli.slide_argument import SlideArgument
from mclst.runtime.click_types import OUTPUTS

MODULES = {
    "infer": "runtime.cli.infer",
    "report": "runtime.cli.report",
    "eval": "evaluation.cli",
    "fit": "training.fitting.cli",
    "train": "training.cli",
    "export": "export.cli",
    "bench": "benchmarks.cli",
}
TEXTS = {"--encoder": "uni", "--server": "http://localhost:1"}
"""Required options that are no paths."""
WITH = {
    "infer --spots": "other",
    "infer --bundle": "other --spots spots",
    "infer --region": "other --spots spots",
    "infer --tissue-mask": "other --grid 100",
    "infer --server-ca": "other --spots spots --server https://localhost:1",
    "infer slide": "--spots spots",
    "export --bundle": "--triton repository",
    "bench latency --slide": "--spots spots",
    "bench latency --spots": "--slide other",
    "bench leaderboard --bundle": "other",
    "bench leaderboard --data": "other --bundle b",
    "bench leaderboard --embeddings": "other",
    "bench leaderboard --genes": "other --bundle b",
    "bench leaderboard --predictions": "other",
    "bench leaderboard root": "--bundle b",
    "bench recipes --slide": "--two-blocks",
}
"""What a parameter goes with, where the command's required ones do not do."""
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


def command_of(name: str) -> click.Command:
    command: click.Command = import_module(f"mclst.{MODULES[name.split()[0]]}").main
    for part in name.split()[1:]:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), part) or command
    return command


def spelled(parameter: click.Parameter) -> str:
    return parameter.opts[0]


def commands() -> Iterator[str]:
    for name in MODULES:
        command = command_of(name)
        if not isinstance(command, click.Group):
            yield name
            continue
        for part in command.list_commands(click.Context(command)):
            yield f"{name} {part}"


def reads(parameter: click.Parameter) -> bool:
    is_path = isinstance(parameter.type, click.Path | SlideArgument | BundleType)
    return is_path and parameter.name not in OUTPUTS and parameter.name != "slides"  # see test_cohort


def inputs() -> Iterator[str]:
    for name in commands():
        parameters = command_of(name).params
        if any(parameter.name == "json_path" for parameter in parameters):
            yield from (f"{name} {spelled(parameter)}" for parameter in parameters if reads(parameter))


def others(which: str, name: str, but: str) -> list[str]:
    """What goes with the parameter `but`."""
    if which in WITH:
        return WITH[which].split()
    words = ["--ckpt", "other"] if name == "export" and but != "--ckpt" else []
    for parameter in command_of(name).params:
        option = spelled(parameter)
        if parameter.required and option != but:
            value = TEXTS.get(option, "other")
            words += [option, value] if option.startswith("-") else [value]
    return words


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
