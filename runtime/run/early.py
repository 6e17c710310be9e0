"""What a run needs later, begun beside its other work: the slide, and libraries."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mclst.runtime.background import Background
from mclst.runtime.choices import FASTEST_FIRST
from mclst.runtime.errors import MclstError
from mclst.runtime.resources import available_cores
from mclst.sections.location import SlideLocation, local_path

if TYPE_CHECKING:
    from mclst.runtime.run.options import RunOptions
    from mclst.runtime.slide.base import Slide

LIBRARIES = {"cpu": "onnxruntime", "openvino": "openvino"}
"""Of the providers on the CPU; they take up to 0.2 s to load."""
FIRST_LIBRARY = LIBRARIES[next(name for name in FASTEST_FIRST if name in LIBRARIES)]
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


def begin_loading(folder: Path, options: RunOptions) -> Background[None]:
    """Begin to import the library that probably runs a bundle's encoder, while the bundle is verified.

    A process must not end before: what a library starts as it is loaded would end with it.
    """

    def load() -> None:
        from mclst.runtime.bundle.bundle import unverified_bundle
        from mclst.runtime.inference.encoder_choice import ChoiceRequest, known_choice, runs_on_cpu

        with suppress(MclstError, ImportError):  # said where it is needed
            if runs_on_cpu(options.provider):
                request = ChoiceRequest(
                    options.provider, options.precision, options.batch_size, available_cores()
                )
                choice = known_choice(unverified_bundle(folder), request)
                if choice is not None:
                    import_module(LIBRARIES.get(choice.provider, FIRST_LIBRARY))

    return Background(load, "library")
