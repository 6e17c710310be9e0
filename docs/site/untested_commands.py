"""Hook of mkdocs: says above a block of commands that no test runs why that is so."""

from __future__ import annotations

import re
from typing import Any

MARKER = re.compile(r"^<!-- not run: ([^>]+?) -->\n(?=```)", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Show the marker, which is a comment in the source."""
    return MARKER.sub(r"*Not run by the tests: \1.*\n\n", markdown)
