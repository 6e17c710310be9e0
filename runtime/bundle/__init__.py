"""The bundle on disk: manifest, graphs, reference bank."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mclst.runtime.bundle.bundle import Bundle, open_bundle

__all__ = [
    "Bundle",
    "open_bundle",
]

# Resolved on first use, so that importing the package stays cheap.
_MODULES = {
    "Bundle": "mclst.runtime.bundle.bundle",
    "open_bundle": "mclst.runtime.bundle.bundle",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
