"""Retrieval: predict expression for query embeddings from a bank of reference spots."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mclst.kernels.definition.contract import ProviderError
    from mclst.kernels.definition.result import RetrievalResult
    from mclst.kernels.definition.spec import RetrievalSpec
    from mclst.kernels.retriever import Retriever

__all__ = [
    "ProviderError",
    "RetrievalResult",
    "RetrievalSpec",
    "Retriever",
]

# Resolved on first use, so that importing the package stays cheap.
_MODULES = {
    "ProviderError": "mclst.kernels.definition.contract",
    "RetrievalSpec": "mclst.kernels.definition.spec",
    "RetrievalResult": "mclst.kernels.definition.result",
    "Retriever": "mclst.kernels.retriever",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
