"""Synthetic banks and queries of two kinds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.retrieval.cases import KINDS, Case

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Bank:
    """Embedding [M, D] and expression [M, G], as `Retriever` takes them."""

    embedding: F32
    expression: F32


class Source:
    """Embeddings and expression of one kind, the same for the same seed.

    clustered: twelve separate clusters, isotropic, so that no projection helps. contrastive: like a trained
    pair of
        encoders: tissue domains and gradients in a few dozen directions of falling weight, noise in all
        directions, layer-normalized, with a constant gap between the modalities.
    """

    def __init__(self, kind: str, case: Case, seed: int = 0) -> None:
        if kind not in KINDS:
            raise ValueError(f"data is {kind!r}; choose one of {', '.join(KINDS)}")
        self._kind, self._case = kind, case
        self._seed = seed
        rng = np.random.default_rng([seed, 0])
        self._centers = 2 * rng.normal(size=(12, case.d))
        weight = 1 / np.sqrt(1 + np.arange(min(32, case.d)))
        self._mixing = rng.normal(size=(len(weight), case.d)) * weight[:, None]
        self._domains = 1.5 * rng.normal(size=(8, len(weight)))
        self._gap = 0.5 * rng.normal(size=case.d)

    def bank(self) -> Bank:
        """M rows; about a third of the expression is zero, as in log counts."""
        rng = np.random.default_rng([self._seed, 1])
        expression = rng.gamma(1.0, size=(self._case.m, self._case.genes)).astype(np.float32)
        return Bank(self._draw(rng, self._case.m, 0.0), np.maximum(expression - np.float32(0.4), 0))

    def queries(self, n: int, block: int = 0) -> F32:
        """Queries [n, D]; each `block` has different ones."""
        return self._draw(np.random.default_rng([self._seed, 2, block]), n, 1.0)

    def _draw(self, rng: np.random.Generator, n: int, gap: float) -> F32:
        if self._kind == "clustered":
            points = self._centers[rng.integers(12, size=n)] + rng.normal(size=(n, self._case.d))
            return np.asarray(points, dtype=np.float32)
        latent = self._domains[rng.integers(8, size=n)] + rng.normal(size=(n, self._domains.shape[1]))
        points = latent @ self._mixing + 0.3 * rng.normal(size=(n, self._case.d)) + gap * self._gap
        points -= points.mean(axis=1, keepdims=True)
        return np.asarray(points / points.std(axis=1, keepdims=True), dtype=np.float32)
