"""The Dockerfiles copy what exists and install extras that pyproject.toml has; building needs an engine."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "USER", "WORKDIR"}


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile: comments dropped, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def ignored() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_instructions_and_stages(path: Path) -> None:
    lines = instructions(path)
    assert {name for name, _ in lines} <= INSTRUCTIONS
    stages = {rest.partition(" AS ")[2] for name, rest in lines if name == "FROM"}
    for name, rest in lines:
        if name == "COPY" and (stage := re.match(r"--from=(\S+) ", rest)):
            assert stage[1] in stages
        elif name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), f"{path.name} copies {source}"
                assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored())
    users = [rest for name, rest in lines if name == "USER"]
    assert users and users[-1] != "root"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_extras_exist(path: Path) -> None:
    text = path.read_text()
    lists = re.findall(r"\[([a-z,-]+)\]\"", text) + re.findall(r"EXTRAS=(\S+)", text)
    assert lists
    for extras in lists:
        assert set(extras.split(",")) <= set(PYPROJECT["project"]["optional-dependencies"]), extras


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_an_image_installs_is_pinned(path: Path) -> None:
    project = PYPROJECT["project"]
    pinned = {normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]}
    (extras,) = re.findall(r"(?:whl\)\[|^ARG EXTRAS=)([a-z]+[a-z,]*)", path.read_text(), re.MULTILINE)
    wanted = [
        "setuptools",
        *project["dependencies"],
        *(name for extra in extras.split(",") for name in project["optional-dependencies"][extra]),
    ]
    assert {normal(re.split(r"[^\w-]", name)[0]) for name in wanted} <= pinned


def normal(name: str) -> str:
    """The name of a distribution as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_pythons_are_supported(path: Path) -> None:
    least = tuple(map(int, PYPROJECT["project"]["requires-python"].removeprefix(">=").split(".")))
    images = [rest.split()[0] for name, rest in instructions(path) if name == "FROM"]
    for image in images:
        if match := re.match(r"python:(\d+)\.(\d+)-", image):
            assert (int(match[1]), int(match[2])) >= least
        else:
            assert image.endswith("ubuntu24.04") or image == "ubuntu:24.04"  # Python 3.12


def test_packages_reach_the_image() -> None:
    folders = set(PYPROJECT["tool"]["setuptools"]["package-dir"].values())
    wanted = folders | {"pyproject.toml", "setup.py", "README.md", "LICENSE", "constraints.txt"}
    for name in wanted:
        assert (ROOT / name).exists()
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in ignored()), f"{name} is ignored"
