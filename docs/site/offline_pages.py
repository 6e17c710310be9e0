"""Hook of mkdocs: a page that would load anything from another host fails the build."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.exceptions import PluginError

LOADED = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=\"(?:https?:)?//|<link\b[^>]*\bhref=\"(?:https?:)?//"
)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse what a browser would fetch; links that a reader follows may lead anywhere."""
    if loaded := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {output[loaded.start() :][:200]}")
    return output
