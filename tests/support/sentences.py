"""Length of the sentences of a Markdown page: `python tests/support/sentences.py [PAGE...]`.

Tables, code, headings and generated parts are left out; an item of a list ends its sentence.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FRONT_MATTER = re.compile(r"\A---\n.*?^---\n", re.MULTILINE | re.DOTALL)
TABLE, HEADING, ITEM = re.compile(r"^\s*\|"), re.compile(r"^#+ "), re.compile(r"^\s*(?:[-*+]|\d+\.)\s+")
END = re.compile(r"(?<=[.!?])[*_)\"”]*\s+")
CODE, LINK = re.compile(r"`[^`]*`"), re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|et al|vs|approx|Fig|No)\.")


def paragraphs(text: str) -> list[str]:
    """Running text and list items of a page, one string each."""
    for pattern in (FRONT_MATTER, FENCE, COMMENT):
        text = pattern.sub("\n", text)
    parts: list[str] = [""]
    for line in text.splitlines():
        if not line.strip() or TABLE.match(line) or HEADING.match(line) or line.startswith(":::"):
            parts.append("")
        elif ITEM.match(line):
            parts.append(ITEM.sub("", line))
        else:
            parts[-1] += " " + line.strip()
    return [part.strip() for part in parts if part.strip()]


def sentences(text: str) -> list[str]:
    """The sentences of a page; code counts as a word, a link as its text."""
    plain = [LINK.sub(r"\1", CODE.sub("Code", paragraph)) for paragraph in paragraphs(text)]
    plain = [ABBREVIATION.sub(r"\1", paragraph) for paragraph in plain]
    parts = [part for paragraph in plain for part in END.split(paragraph)]
    return [part for part in parts if re.search(r"\w", part)]


def lengths(text: str) -> list[int]:
    """Words per sentence."""
    return [sum(bool(re.search(r"\w", word)) for word in part.split()) for part in sentences(text)]


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    pages = [Path(page) for page in sys.argv[1:]] or [
        *root.glob("*.md"),
        *sorted((root / "docs").glob("*.md")),
    ]
    for page in pages:
        words = lengths(page.read_text(encoding="utf-8"))
        if words:
            long = sum(count > 25 for count in words)
            mean = sum(words) / len(words)
            print(f"{page.name:<24} {len(words):4} sentences, mean {mean:5.1f}, {long} above 25 words")
