"""The retrievals that are measured: the published ones by shape and setting, on made-up embeddings of two kinds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.spec import RetrievalSpec

F32 = NDArray[np.float32]
COLUMNS = 256
KINDS = ("clustered", "contrastive")


@dataclass(frozen=True)
class Case:
    """A bank's shape (M rows, G genes) and the setting it is used with."""

    name: str
    m: int
    genes: int
    spec: RetrievalSpec
    d: int = COLUMNS


@dataclass(frozen=True)
class Bank:
    """What `Retriever` asks of a bank."""

    embedding: F32
    expression: F32


def _case(name: str, m: int, genes: int, k: int, distance: str) -> Case:
    return Case(name, m, genes, RetrievalSpec(k=k, rank="cosine", distance=distance))  # type: ignore[arg-type]


# M: the most spots left when one section is held out. k: the published scripts', and the paper's where it differs.
CASES = {
    case.name: case
    for case in (
        _case("her2st-l1", 11_372, 785, 200, "l1"),
        _case("her2st-l2", 11_372, 785, 200, "l2"),
        _case("cscc-k600", 8_209, 171, 600, "l2"),
        _case("cscc-k200", 8_209, 171, 200, "l2"),
        _case("visium-k2400", 24_787, 685, 2400, "l2"),
        _case("visium-k200", 24_787, 685, 200, "l2"),
    )
}


class Source:
    """Embeddings and expression of one kind, the same for the same seed.

    clustered: twelve well parted clusters, round in every direction: no direction tells more than another.
    contrastive: as a trained pair of encoders gives them: tissue domains and gradients in a few dozen directions of
        falling weight, noise in all, layer-normalised, the two modalities a constant step apart.
    """

    def __init__(self, kind: str, case: Case, seed: int = 0) -> None:
        if kind not in KINDS:
            raise ValueError(f"data is {kind!r}; choose one of {', '.join(KINDS)}")
        self._kind, self._case = kind, case
        self._seed = seed
        rng = np.random.default_rng([seed, 0])
        self._centres = 2 * rng.normal(size=(12, case.d))
        weight = 1 / np.sqrt(1 + np.arange(min(32, case.d)))
        self._mixing = rng.normal(size=(len(weight), case.d)) * weight[:, None]
        self._domains = 1.5 * rng.normal(size=(8, len(weight)))
        self._gap = 0.5 * rng.normal(size=case.d)

    def bank(self) -> Bank:
        """M rows of embedding [M, D] and expression [M, G], about a third of it zero, as log counts are."""
        rng = np.random.default_rng([self._seed, 1])
        expression = rng.gamma(1.0, size=(self._case.m, self._case.genes)).astype(np.float32)
        return Bank(self._draw(rng, self._case.m, 0.0), np.maximum(expression - np.float32(0.4), 0))

    def queries(self, n: int, block: int = 0) -> F32:
        """n queries [n, D]; another `block`, others."""
        return self._draw(np.random.default_rng([self._seed, 2, block]), n, 1.0)

    def _draw(self, rng: np.random.Generator, n: int, gap: float) -> F32:
        if self._kind == "clustered":
            points = self._centres[rng.integers(12, size=n)] + rng.normal(size=(n, self._case.d))
            return np.asarray(points, dtype=np.float32)
        latent = self._domains[rng.integers(8, size=n)] + rng.normal(size=(n, self._domains.shape[1]))
        points = latent @ self._mixing + 0.3 * rng.normal(size=(n, self._case.d)) + gap * self._gap
        points -= points.mean(axis=1, keepdims=True)
        return np.asarray(points / points.std(axis=1, keepdims=True), dtype=np.float32)
