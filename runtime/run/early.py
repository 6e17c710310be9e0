"""Libraries that a run needs later, loaded beside its work: together they take a second."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module

from mclst.runtime.background import Background

DRAWS = ("mclst.runtime.report.figures.contact_sheet",)
MAKES_PAGES = ("mclst.runtime.report.page.slide_page",)


def load_beside(*, draw: bool, page: bool) -> None:
    """Begin to import what draws a map's genes and makes its page."""
    names = DRAWS * draw + MAKES_PAGES * page

    def load() -> None:
        for name in names:
            with suppress(ImportError):  # said where it is needed
                import_module(name)

    Background(load, "imports")
