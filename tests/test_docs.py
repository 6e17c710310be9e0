"""Links of README and docs lead to files and headings that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
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


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 500


def test_what_has_not_run_on_a_gpu_is_said_in_one_place() -> None:
    said = re.compile(
        r"\b(not|never|nothing|no \w+)( \w+){0,5} (run|ran)( yet)? on (a gpu|hardware)|not run yet"
    )
    pages = {
        page.name: len(said.findall(re.sub(r"\[[^\]]*\]\([^)]*\)", "", page.read_text().lower())))
        for page in (ROOT / "docs").glob("*.md")
    }
    assert {name for name, count in pages.items() if count} == {"architecture.md"}
