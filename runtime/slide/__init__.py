"""Open a slide and read its pixels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mclst.runtime.slide.base import Slide
    from mclst.runtime.slide.open import open_slide

__all__ = [
    "Slide",
    "open_slide",
]

# Resolved on first use, so that importing the package stays cheap.
_MODULES = {
    "Slide": "mclst.runtime.slide.base",
    "open_slide": "mclst.runtime.slide.open",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
