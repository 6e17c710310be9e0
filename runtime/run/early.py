"""What a run begins beside its other work: before the first tile what that needs, after it all else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mclst.runtime.background import Background
from mclst.runtime.choices import FASTEST_FIRST
from mclst.runtime.errors import MclstError

if TYPE_CHECKING:
    from mclst.runtime.expression_map.row_writer import RowWriter
    from mclst.runtime.expression_map.writer import MapWriter
    from mclst.runtime.report.page.tissue import TissueJpeg
    from mclst.runtime.run.context import RunContext
    from mclst.runtime.run.options import RunOptions

LIBRARIES = {"cpu": "onnxruntime", "openvino": "openvino"}
"""Of the providers on the CPU; they take up to 0.2 s to load."""
FIRST_LIBRARY = LIBRARIES[next(name for name in FASTEST_FIRST if name in LIBRARIES)]
DRAWS = ("mclst.runtime.report.figures.contact_sheet",)
MAKES_PAGES = ("mclst.runtime.report.page.slide_page",)


def begin_loading(folder: Path, options: RunOptions) -> Background[None]:
    """Begin to import the library that probably runs a bundle's encoder, while the bundle is verified.

    A process must not end before: what a library starts as it is loaded would end with it.
    """

    def load() -> None:
        from mclst.runtime.bundle.bundle import unverified_bundle
        from mclst.runtime.providers.candidates import runs_on_cpu
        from mclst.runtime.providers.choice import known_choice

        with suppress(MclstError, ImportError):  # said where it is needed
            if runs_on_cpu(options.provider):
                choice = known_choice(unverified_bundle(folder), options.choice_request())
                if choice is not None:
                    import_module(LIBRARIES.get(choice.provider, FIRST_LIBRARY))

    return Background(load, "library")


class LateMap:
    """A map's file, opened once the first tiles are encoded, since no tile needs it.

    A context, which closes the writer as its own context would.

    Parameters
    ----------
    open_it : callable
        Opens the writer.
    whole : bool
        Whether it is a map with pictures and files beside it, not a part of one.
    """

    def __init__(self, open_it: Callable[[], RowWriter], *, whole: bool) -> None:
        self._open, self._whole = open_it, whole
        self._opening: Background[RowWriter] | None = None
        self._pictures: Background[TissueJpeg | None] | None = None
        self._is_ready = False

    @property
    def writer(self) -> RowWriter:
        """The writer; opened by the first call at the latest, which raises what opening raises."""
        return self._begin_opening().result()

    @property
    def opened(self) -> RowWriter | None:
        """The writer if it is open, else None."""
        if self._opening is None or not self._opening.succeeded:
            return None
        return self._opening.result()

    def ready(self, run: RunContext) -> None:
        """Wait until rows can be predicted and written; raises what keeps them from it."""
        if self._is_ready:
            return
        self.writer  # noqa: B018 - opened
        run.readout.settings  # noqa: B018 - opened
        # All files have been read by now, so the hashes verified at the start cover what was read.
        run.model.check_unchanged()
        self._is_ready = True

    def begin(self, run: RunContext) -> None:
        """Begin to open it and the bank, to make the slide's picture, and to import what draws."""
        from mclst.runtime.inference.readout import LateReadout

        if isinstance(run.readout, LateReadout):
            run.readout.begin()
        self._begin_opening()
        if self._whole and self._pictures is None:
            self._pictures = Background(partial(self._put_pictures, run), "pictures")
            names = DRAWS * (run.outputs.sheet is not None) + MAKES_PAGES * ("html" in run.outputs.files)
            Background(partial(_import_all, names), "imports")

    def pictures(self, run: RunContext) -> TissueJpeg | None:
        """Wait for the slide's picture, and return that of the page."""
        self.begin(run)
        assert self._pictures is not None, "a part has none"
        return self._pictures.result()

    def _begin_opening(self) -> Background[RowWriter]:
        if self._opening is None:
            self._opening = Background(self._open, "map")
        return self._opening

    def _put_pictures(self, run: RunContext) -> TissueJpeg | None:
        from mclst.runtime.run.publish import put_pictures

        def writer() -> MapWriter:
            return self.writer  # type: ignore[return-value]

        return put_pictures(run.inputs.slide, writer, run.outputs.content)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opening is not None:
            self._opening.wait()
        if self.opened is not None:
            self.opened.__exit__(kind, error, trace)


def _import_all(names: tuple[str, ...]) -> None:
    for name in names:
        with suppress(ImportError):  # said where it is needed
            import_module(name)
