"""Links of README and docs lead to files and headings that exist."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from sentences import lengths

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GENERATED = ("card-c4.md",)
"""A list of 785 genes is no sentence."""
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(CODE.sub("", page.read_text())):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {target}#{anchor}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    words = lengths(page.read_text(encoding="utf-8"))
    assert page.name in GENERATED or len(words) < 3 or sum(words) / len(words) < 22


def test_every_picture_is_shown_and_as_wide_as_the_others() -> None:
    files = {path for path in (ROOT / "docs" / "images").iterdir() if path.suffix in (".jpg", ".png")}
    pictures = re.compile(r"!\[[^\]]+\]\(([^)]+)\)")
    shown = {(page.parent / name).resolve() for page in PAGES for name in pictures.findall(page.read_text())}
    assert shown == files
    for path in files:
        with Image.open(path) as picture:
            assert picture.width == 1600, path.name


@pytest.mark.parametrize(
    "chart", sorted((ROOT / "docs" / "images").glob("*.png")), ids=lambda path: path.stem
)
def test_a_chart_is_drawn_from_the_committed_measurement(chart: Path) -> None:
    with Image.open(chart) as picture:
        name, digest = picture.info["Source"].split()
    content = (ROOT / "benchmarks" / "results" / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest, f"{name} has changed: python docs/images/make.py"


@pytest.mark.parametrize("name", ["c4.jpg", "report.jpg"])
def test_a_picture_of_c4_shows_the_ridge_that_was_measured(name: str) -> None:
    with Image.open(ROOT / "docs" / "images" / name) as picture:
        shown = picture.info["comment"].decode()
    results = ROOT / "benchmarks" / "results"
    changed = json.loads((results / "robustness-c4-ridge.json").read_text())
    maps = json.loads((results / "trust-heads-c2-c5.json").read_text())["results"]
    (row,) = (row for row in maps if row["file"] == "ridge-C4-90.h5ad")
    for measured in (changed["bundle"], row["made_by"]):
        assert shown == f"checkpoint {measured['checkpoint_sha256']}", "python docs/images/make.py --bundle …"


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    notebooks = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.ipynb")}
    named = set(re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == pages | {page.replace(".ipynb", ".md") for page in notebooks}


def test_the_table_of_extras_has_them_all() -> None:
    table = (ROOT / "docs" / "install.md").read_text().split("## Extras")[1].split("## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(cells))) == sorted(extras)


@functools.cache
def texts_of_the_code() -> str:
    """Every text in the packages, a placeholder as …, one per line."""
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-dir"
    ].values()
    lines = []
    for path in [path for folder in folders for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                lines.append("".join(map(str, parts)))
    return "\n".join(lines)


def messages() -> list[str]:
    lines = (ROOT / "docs" / "troubleshooting.md").read_text().splitlines()
    return [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]


@pytest.mark.parametrize("message", [text for text in messages() if text != "message"])
def test_a_message_of_the_troubleshooting_page_is_one_of_the_programs(message: str) -> None:
    assert message.removeprefix("… ").removesuffix(" …") in texts_of_the_code()


def test_the_readme_is_read_in_two_minutes() -> None:
    text = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(text.split()) <= 500


def test_what_has_not_run_on_a_gpu_is_said_in_one_place() -> None:
    said = re.compile(
        r"\b(not|never|nothing|no \w+)( \w+){0,5} (run|ran)( yet)? on (a gpu|hardware)|not run yet"
    )
    pages = {
        page.name: len(said.findall(re.sub(r"\[[^\]]*\]\([^)]*\)", "", page.read_text().lower())))
        for page in (ROOT / "docs").rglob("*.md")
    }
    assert {name for name, count in pages.items() if count} == {"architecture.md"}
