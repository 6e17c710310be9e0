"""A bundle and a slide in, an expression map out; numpy in, numpy out, never torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mclst.runtime.bundle.bundle import Bundle, open_bundle
    from mclst.runtime.errors import InputError, MclstError, OutputError, ResourceError
    from mclst.runtime.report.files import Files
    from mclst.runtime.run.options import RunOptions
    from mclst.runtime.run.predict import predict
    from mclst.runtime.run.report import Run
    from mclst.runtime.slide.base import Slide
    from mclst.runtime.slide.open import open_slide

__all__ = [
    "Bundle",
    "Files",
    "InputError",
    "MclstError",
    "OutputError",
    "ResourceError",
    "Run",
    "RunOptions",
    "Slide",
    "open_bundle",
    "open_slide",
    "predict",
]

# Resolved on first use, so that importing the package stays cheap.
_MODULES = {
    "Bundle": "mclst.runtime.bundle.bundle",
    "Files": "mclst.runtime.report.files",
    "InputError": "mclst.runtime.errors",
    "MclstError": "mclst.runtime.errors",
    "OutputError": "mclst.runtime.errors",
    "ResourceError": "mclst.runtime.errors",
    "Run": "mclst.runtime.run.report",
    "RunOptions": "mclst.runtime.run.options",
    "Slide": "mclst.runtime.slide.base",
    "open_bundle": "mclst.runtime.bundle.bundle",
    "open_slide": "mclst.runtime.slide.open",
    "predict": "mclst.runtime.run.predict",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
