"""Contrastive training on measured sections, and heads fitted on frozen encoders."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {"from_sklearn": "mclst.training.fitting.sklearn_pipeline"}
"""Resolved on first use, so that importing the package stays cheap."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
