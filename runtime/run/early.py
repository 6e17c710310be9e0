"""What a run needs later, begun beside its other work: the slide, and libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING

from mclst.runtime.background import Background
from mclst.sections.location import SlideLocation, local_path

if TYPE_CHECKING:
    from mclst.runtime.slide.base import Slide

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


def begin_opening(location: SlideLocation, reader: str) -> Background[Slide] | None:
    """Begin to open a slide of this machine, as `open_slide` does; None for one that is elsewhere."""
    if local_path(location) is None:
        return None

    def open_it() -> Slide:
        from mclst.runtime.slide.open import open_slide

        return open_slide(location, reader=reader)

    return Background(open_it, "slide")


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage: what imports make stays, and looking it through as it grows takes 0.1 s."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
