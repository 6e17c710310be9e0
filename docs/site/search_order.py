"""Hook of mkdocs: what a reader searches for in need comes first, measurements last."""

from __future__ import annotations

from typing import Any

BOOST = {"troubleshooting.md": 8, "glossary.md": 2, "commands.md": 2, "faults.md": 0.5}
MEASUREMENTS = 0.25


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> None:
    """Weigh the page in the search index."""
    path = page.file.src_uri
    weight = MEASUREMENTS if path.startswith("benchmarks") else BOOST.get(path)
    if weight is not None:
        page.meta["search"] = {"boost": weight}
