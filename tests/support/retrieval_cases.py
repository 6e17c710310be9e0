"""Queries and banks for tests of retrieval; the adversaries are for the cuda provider."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition import reference
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import NEIGHBOR_WEIGHTINGS, Distance, Rank, RetrievalSpec, Weighting

F32 = NDArray[np.float32]
Points = NDArray[np.float64]
N, M, D = 12, 200, 21

SPECS = [
    RetrievalSpec(k=7, rank=rank, distance=distance, weighting=weighting, temperature=3.0)
    for rank, distance, weighting in itertools.product(
        get_args(Rank), get_args(Distance), cast("tuple[Weighting, ...]", NEIGHBOR_WEIGHTINGS)
    )
]


# How the cuda provider keeps keys and computes the mean.
WAYS: dict[str, dict[str, Any]] = {
    "all keys, gathered": {"sample": 0, "dense_from": 2},
    "keys within a limit, gathered": {"sample": 64, "dense_from": 2},
    "keys within a limit, dense": {"sample": 64, "dense_from": 0},
}


@dataclass
class Bank:
    embedding: F32
    expression: F32


def spec_name(spec: RetrievalSpec) -> str:
    return f"{spec.rank}-{spec.distance}-{spec.weighting}"


def clustered(n: int, m: int, d: int, genes: int = 9, seed: int = 0) -> tuple[F32, Bank]:
    rng = np.random.default_rng(seed)
    centers = 2 * rng.normal(size=(4, d))
    points = centers[rng.integers(4, size=n + m)] + rng.normal(size=(n + m, d))
    expression = rng.gamma(1.0, size=(m, genes)).astype(np.float32)
    return points[:n].astype(np.float32), Bank(points[n:].astype(np.float32), expression)


def _scaled_queries(factor: float) -> Callable[[Points, Points, np.random.Generator], Points]:
    return lambda normal, direction, rng: np.multiply(
        normal, np.where(np.arange(N + M) < N, factor, 1)[:, None]
    )


def _with_outlier(normal: Points, direction: Points, rng: np.random.Generator) -> Points:
    normal[-1] *= 1e9
    return normal


# Each makes N + M points, queries first, from standard normal points, a direction and a random generator.
ADVERSARIES: dict[str, Callable[[Points, Points, np.random.Generator], Points]] = {
    "clusters": lambda normal, direction, rng: normal + rng.integers(-2, 3, size=(N + M, 1)) * direction,
    "tight cluster far out": lambda normal, direction, rng: 100 * direction + 1e-4 * normal,
    "two tight clusters": lambda normal, direction, rng: (
        rng.choice([-50, 50], size=(N + M, 1)) * direction + 1e-4 * normal
    ),
    "norms of a million": lambda normal, direction, rng: 1e6 * normal,
    "norms near the largest": lambda normal, direction, rng: 1e28 * normal,
    "tiny norms": lambda normal, direction, rng: 1e-30 * normal,
    "denormals": lambda normal, direction, rng: 1e-42 * normal,
    "norms over twelve decades": lambda normal, direction, rng: (
        normal * 10.0 ** rng.uniform(-6, 6, size=(N + M, 1))
    ),
    "one outlier": _with_outlier,
    "one huge component": lambda normal, direction, rng: normal + 1e7 * np.eye(D)[0],
    "all equal": lambda normal, direction, rng: np.ones((N + M, 1)) * direction,
    "all zero": lambda normal, direction, rng: 0 * normal,
    "duplicates across k": lambda normal, direction, rng: normal[rng.integers(7, size=N + M)],
    "near ties": lambda normal, direction, rng: direction + 2.0**-22 * rng.integers(-1, 2, size=(N + M, D)),
    "small whole numbers": lambda normal, direction, rng: np.rint(normal),
    "queries far out": _scaled_queries(1e4),
    "queries very far out": _scaled_queries(1e12),
    "some zero rows and zero queries": lambda normal, direction, rng: normal * (rng.random((N + M, 1)) < 0.7),
    "nearest last": lambda normal, direction, rng: np.concatenate(
        [0 * normal[:N] + direction, direction + np.geomspace(10, 1e-5, M)[:, None] * direction[::-1]]
    ),
}


def adversary(name: str) -> tuple[F32, Bank]:
    rng = np.random.default_rng(11)
    points = ADVERSARIES[name](rng.normal(size=(N + M, D)), rng.normal(size=D), rng).astype(np.float32)
    return points[:N], Bank(points[N:], rng.normal(size=(M, 5)).astype(np.float32))


def assert_same(
    got: RetrievalResult, queries: F32, bank: Bank, spec: RetrievalSpec, tolerance: float = 1e-6
) -> None:
    """Same rows in the same order as the reference; expression within `tolerance` of the largest value."""
    expected = reference.aggregate(queries, bank.embedding, bank.expression, spec, neighbors=True)
    np.testing.assert_array_equal(got.neighbors, expected.neighbors)
    atol = tolerance * float(np.abs(bank.expression).max(initial=0))
    np.testing.assert_allclose(got.expression, expected.expression, rtol=0, atol=atol)
    np.testing.assert_allclose(got.nearest, expected.nearest, rtol=1e-6)
    np.testing.assert_allclose(got.effective_k, expected.effective_k, rtol=1e-6)
