"""What is wrong with a section or a table of spots."""

from __future__ import annotations


class SectionError(ValueError):
    """A section or a spot table cannot be used; the message is one sentence naming the file and the row."""
