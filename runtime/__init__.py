"""A bundle and a slide in, an expression map out; numpy in, numpy out, never torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mclst.runtime.bundle import Bundle, open_bundle
    from mclst.runtime.errors import InputError, MclstError, OutputError, ResourceError
    from mclst.runtime.pipeline import Run, predict
    from mclst.runtime.report.files import Files
    from mclst.runtime.slide import Slide, open_slide

__all__ = [
    "Bundle",
    "Files",
    "InputError",
    "MclstError",
    "OutputError",
    "ResourceError",
    "Run",
    "Slide",
    "open_bundle",
    "open_slide",
    "predict",
]

_HOMES = {"bundle": ("Bundle", "open_bundle"), "pipeline": ("Run", "predict"), "report.files": ("Files",), "slide": ("Slide", "open_slide"),
          "errors": ("InputError", "MclstError", "OutputError", "ResourceError")}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is asked for and no more: `mclst.runtime.start` must be there before numpy is."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"mclst.runtime.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
