"""Error raised for unusable sections and spot tables."""

from __future__ import annotations


class SectionError(ValueError):
    """A section or spot table cannot be used; the message names the file and the row in one sentence."""


class UnknownScale(SectionError):
    """A table is in µm, and the slide's µm per pixel is not known yet."""


class UnknownColumns(SectionError):
    """No columns of a table are known to hold positions."""
