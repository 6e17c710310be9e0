"""Embeddings and a bank in, expression out: the definition and its providers."""

from __future__ import annotations

from mclst.kernels.retrieved import Retrieved
from mclst.kernels.retriever import ProviderError, Retriever
from mclst.kernels.spec import RetrievalSpec

__all__ = ["ProviderError", "RetrievalSpec", "Retrieved", "Retriever"]
