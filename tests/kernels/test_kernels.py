"""Retrieval: the definition against scipy, every provider against the definition, and adversaries."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from retrieval_cases import SPECS, Bank, clustered, spec_name
from scipy.spatial.distance import cdist
from scipy.special import softmax

from mclst.kernels.cpu.compiled import built
from mclst.kernels.definition import reference
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import (
    DISTANCES,
    NEIGHBOR_WEIGHTINGS,
    RANKS,
    RetrievalSpec,
)
from mclst.kernels.faiss import nearest
from mclst.kernels.faiss.nearest import Nearest
from mclst.kernels.retriever import Retriever

F32 = NDArray[np.float32]
# Providers compared with the reference.
COMPARED = ["faiss", "cpu"] if built() else ["faiss"]
METRIC: dict[str, Literal["cosine", "euclidean", "cityblock"]] = {
    "cosine": "cosine",
    "l2": "euclidean",
    "l1": "cityblock",
}


@pytest.fixture(params=["matrix product", "row by row"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both search paths of FAISS: matrix products above a threshold, a loop below it."""
    monkeypatch.setattr(
        faiss.cvar, "distance_compute_blas_threshold", 1 if request.param[0] == "m" else 10**9
    )
    return str(request.param)


def rows(got: RetrievalResult) -> NDArray[np.int64]:
    assert got.neighbors is not None and got.neighbors.dtype == np.int64
    return got.neighbors


def assert_same(got: RetrievalResult, expected: RetrievalResult, bank: Bank) -> None:
    """Same rows in the same order, and values within the guaranteed tolerance."""
    np.testing.assert_array_equal(rows(got), rows(expected))
    tolerance = 1e-6 * float(np.abs(bank.expression).max(initial=0))
    np.testing.assert_allclose(got.expression, expected.expression, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.nearest, expected.nearest, rtol=1e-6)
    np.testing.assert_allclose(got.effective_k, expected.effective_k, rtol=1e-6)
    assert got.expression.dtype == got.nearest.dtype == got.effective_k.dtype == np.float32


def check(queries: F32, bank: Bank, spec: RetrievalSpec) -> RetrievalResult:
    """Compare every provider with the reference; return the reference's result."""
    expected = Retriever(bank, spec, "reference").aggregate(queries, neighbors=True)
    for provider in COMPARED:
        assert_same(Retriever(bank, spec, provider).aggregate(queries, neighbors=True), expected, bank)
    return expected


# --- the definition, against scipy and plain float64 ----------------------------------------------


def plain_weights(distance: NDArray[np.float64], spec: RetrievalSpec) -> NDArray[np.float64]:
    if spec.weighting == "uniform":
        return np.full(len(distance), 1 / len(distance))
    if spec.weighting == "inverse-square":
        raw = distance**-2.0
        return np.asarray(raw / raw.sum())
    power = 2 if spec.weighting == "softmax-squared" else 1
    return np.asarray(softmax(-(distance**power) / spec.temperature))


@pytest.mark.parametrize("spec", SPECS, ids=spec_name)
def test_the_definition_is_what_scipy_says(spec: RetrievalSpec) -> None:
    queries, bank = clustered(6, 60, 13)
    got = reference.aggregate(queries, bank.embedding, bank.expression, spec, neighbors=True)
    wide, far = queries.astype(np.float64), bank.embedding.astype(np.float64)
    ranked, distance = cdist(wide, far, METRIC[spec.rank]), cdist(wide, far, METRIC[spec.distance])
    for i in range(len(queries)):
        near = np.argsort(ranked[i])[: spec.k]
        weight = plain_weights(distance[i, near], spec)
        np.testing.assert_array_equal(rows(got)[i], near)
        np.testing.assert_allclose(
            got.expression[i], weight @ bank.expression[near].astype(np.float64), rtol=1e-6
        )
        np.testing.assert_allclose(got.nearest[i], distance[i, near].min(), rtol=1e-6)
        np.testing.assert_allclose(got.effective_k[i], 1 / (weight**2).sum(), rtol=1e-6)


def test_cosine_distance_keeps_its_digits_between_near_directions() -> None:
    angle = np.array([1e-3, 1e-6, 1e-9, 1e-12])
    near = np.column_stack([np.cos(angle), np.sin(angle)])
    got = reference.distances("cosine", np.array([[5.0, 0.0]]), 3 * near)
    np.testing.assert_allclose(got, 2 * np.sin(angle / 2) ** 2, rtol=1e-3)


def test_a_zero_vector_has_similarity_0_and_cosine_distance_1() -> None:
    rows = np.array([[0, 0], [1, 0], [-1, 0], [0, 2]], dtype=np.float32)
    np.testing.assert_array_equal(reference.distances("cosine", rows[:1], rows), [1, 1, 1, 1])
    np.testing.assert_array_equal(reference.distances("cosine", rows[1:2], rows), [1, 0, 2, 1])
    np.testing.assert_array_equal(reference.rank_scores("cosine", rows[:1], rows), [0, 0, 0, 0])
    # A zero row ranks with orthogonal ones: after rows of the same direction, before opposite ones.
    np.testing.assert_array_equal(
        np.argsort(reference.rank_scores("cosine", rows[1:2], rows), kind="stable"), [1, 0, 3, 2]
    )


def test_whole_multiples_of_a_row_are_at_one_cosine() -> None:
    rng = np.random.default_rng(3)
    row, query = rng.integers(-9, 10, size=(2, 20))
    multiples = np.arange(1, 50)[:, None] * row
    assert len(np.unique(reference.rank_scores("cosine", query, multiples))) == 1
    np.testing.assert_array_equal(reference.distances("cosine", row, multiples), np.zeros(49))


@pytest.mark.parametrize("provider", [*COMPARED, "reference"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_zero_distance_takes_all_the_weight_shared_among_equals(provider: str, distance: Any) -> None:
    embedding = np.array([[1, 2], [3, 1], [1, 2], [1, 1]], dtype=np.float32)
    expression = np.array([[1, 0], [9, 9], [3, 8], [7, 7]], dtype=np.float32)
    spec = RetrievalSpec(k=4, rank="l2", distance=distance, weighting="inverse-square")
    got = Retriever(Bank(embedding, expression), spec, provider).aggregate(embedding[:1])
    np.testing.assert_array_equal(got.expression, [[2, 4]])
    np.testing.assert_array_equal(got.effective_k, [2])
    np.testing.assert_array_equal(got.nearest, [0])


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e30, 1.7e308])
@pytest.mark.parametrize("weighting", ["softmax", "softmax-squared"])
def test_extreme_temperatures_give_the_nearest_alone_or_all_alike(weighting: Any, temperature: float) -> None:
    queries, bank = clustered(5, 40, 6)
    spec = RetrievalSpec(k=8, rank="l2", distance="l2", weighting=weighting, temperature=temperature)
    got = check(queries, bank, spec)
    np.testing.assert_allclose(got.effective_k, 1 if temperature < 1 else 8, rtol=1e-6)


# --- every provider against the definition --------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=spec_name)
def test_provider_equals_the_definition(spec: RetrievalSpec) -> None:
    queries, bank = clustered(30, 300, 32)
    check(queries, bank, spec)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("d", [1, 3, 255, 257])
@pytest.mark.parametrize(
    ("m", "k"), [(1, 1), (5, 1), (5, 5), (18, 17), (200, 1), (200, 60), (200, 199), (200, 200)]
)
def test_odd_shapes(rank: Any, d: int, m: int, k: int) -> None:
    queries, bank = clustered(25, m, d, genes=1 if d == 3 else 20)
    check(queries, bank, RetrievalSpec(k=k, rank=rank))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_queries(n: int) -> None:
    queries, bank = clustered(n, 120, 16)
    got = check(queries, bank, RetrievalSpec(k=10, rank="l2"))
    assert got.expression.shape == (n, 9) and got.nearest.shape == (n,) and rows(got).shape == (n, 10)


def test_more_neighbors_than_a_gpu_index_would_give() -> None:
    queries, bank = clustered(4, 3000, 16)
    check(queries, bank, RetrievalSpec(k=2400, rank="cosine", distance="l2"))


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[F32, Bank, RetrievalSpec]:
    """Small integers in few columns: most cases have ties, duplicates, zero rows and zero distances."""
    m, n, d = draw(st.integers(1, 40)), draw(st.integers(0, 25)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread, scale = draw(st.integers(0, 3)), 2.0 ** draw(st.integers(-60, 60))
    points = (rng.integers(-spread, spread + 1, size=(n + m, d)) * scale).astype(np.float32)
    spec = RetrievalSpec(
        k=draw(st.integers(1, m)),
        rank=draw(st.sampled_from(RANKS)),
        distance=draw(st.sampled_from(DISTANCES)),
        weighting=draw(st.sampled_from(NEIGHBOR_WEIGHTINGS)),
        temperature=draw(st.floats(1e-3, 1e3)),
    )
    return points[:n], Bank(points[n:], rng.normal(size=(m, 3)).astype(np.float32)), spec


@settings(deadline=None, max_examples=200)
@given(small_cases())
@pytest.mark.slow
def test_ties_go_to_the_lower_row(case: tuple[F32, Bank, RetrievalSpec]) -> None:
    queries, bank, spec = case
    got = check(queries, bank, spec)
    # Whole numbers times a power of two have exact sums, so here the oracle is arithmetic, not a tolerance.
    scale = np.abs(np.concatenate([queries, bank.embedding])).max(initial=0) or 1.0
    q, b = np.rint(queries / scale * 6).astype(object), np.rint(bank.embedding / scale * 6).astype(object)
    for i in range(len(q)):
        expected = sorted(range(len(b)), key=lambda j: (exact_score(spec.rank, q[i], b[j]), j))[: spec.k]
        assert rows(got)[i].tolist() == expected


def exact_score(rank: str, q: Any, b: Any) -> Any:
    if rank == "l1":
        return sum(abs(x - y) for x, y in zip(q, b, strict=True))
    if rank == "l2":
        return sum((x - y) ** 2 for x, y in zip(q, b, strict=True))
    dot, squared = sum(x * y for x, y in zip(q, b, strict=True)), sum(y * y for y in b)
    return -(1 if dot > 0 else -1) * Fraction(int(dot * dot), int(squared)) if squared else Fraction(0)


@st.composite
def rough_cases(draw: st.DrawFn) -> tuple[F32, Bank, RetrievalSpec]:
    """Arbitrary float32 up to 1e30, with rows repeated, nudged by one bit, scaled and negated."""
    value = (
        st.floats(-(2.0**99), 2.0**99, width=32)
        | st.floats(-4, 4, width=32)
        | st.sampled_from([0.0, -0.0, 1e-45])
    )
    d = draw(st.integers(1, 4))
    base = np.array(
        draw(st.lists(st.lists(value, min_size=d, max_size=d), min_size=1, max_size=6)), dtype=np.float32
    )
    points = np.concatenate([base, base, np.nextafter(base, np.float32(0)), base / 2, -base])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bank = points[rng.permutation(len(points))]
    spec = RetrievalSpec(k=draw(st.integers(1, len(bank))), rank=draw(st.sampled_from(RANKS)))
    return (
        points[rng.permutation(len(points))],
        Bank(bank, rng.normal(size=(len(bank), 2)).astype(np.float32)),
        spec,
    )


@settings(deadline=None, max_examples=150)
@given(rough_cases())
@pytest.mark.slow
def test_any_finite_numbers(case: tuple[F32, Bank, RetrievalSpec]) -> None:
    check(*case)


# --- where float32 alone chooses wrongly ----------------------------------------------------------


Points = NDArray[np.float64]
N, M, D = 25, 250, 24


def on_a_sphere(normal: Points) -> Points:
    sphere: Points = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    sphere[:N] = 1e-7 * normal[:N]
    return sphere


def outlier(normal: Points) -> Points:
    normal[-1] *= 1e9
    return normal


def outliers(size: float) -> Callable[[Points, Points, np.random.Generator], Points]:
    """Two rows that keep the mean and scale the others below the range of float32 or its square."""

    def points(normal: Points, way: Points, rng: np.random.Generator) -> Points:
        normal *= size
        normal[N : N + 2] = [1e30 * np.ones(D), -1e30 * np.ones(D)]
        return normal

    return points


def queries_out(factor: float) -> Callable[[Points, Points, np.random.Generator], Points]:
    return lambda normal, way, rng: np.multiply(normal, np.where(np.arange(N + M) < N, factor, 1)[:, None])


# Each makes N + M points, queries first, from standard normal points, a direction and a random generator.
ADVERSARIES: dict[str, Callable[[Points, Points, np.random.Generator], Points]] = {
    "tight cluster far out": lambda normal, way, rng: 100 * way + 1e-4 * normal,
    "two tight clusters": lambda normal, way, rng: (
        rng.choice([-50, 50], size=(N + M, 1)) * way + 1e-4 * normal
    ),
    "huge norms": lambda normal, way, rng: 1e6 * normal,
    "huge norms, tight": lambda normal, way, rng: 1e20 * way + 1e14 * normal,
    "tiny norms": lambda normal, way, rng: 1e-30 * normal,
    "norms over twelve decades": lambda normal, way, rng: (
        normal * 10.0 ** rng.uniform(-6, 6, size=(N + M, 1))
    ),
    "one outlier": lambda normal, way, rng: outlier(normal),
    "others squared to nothing": outliers(1e8),
    "others rounded to nothing": outliers(1e-13),
    "one huge component": lambda normal, way, rng: normal + 1e7 * np.eye(D)[0],
    "all equal": lambda normal, way, rng: np.ones((N + M, 1)) * way,
    "all zero": lambda normal, way, rng: 0 * normal,
    "duplicates across k": lambda normal, way, rng: normal[rng.integers(7, size=N + M)],
    "near ties": lambda normal, way, rng: way + 2.0**-22 * rng.integers(-1, 2, size=(N + M, D)),
    "on one ray": lambda normal, way, rng: way * rng.uniform(0.5, 2, size=(N + M, 1)),
    "on a sphere about the queries": lambda normal, way, rng: on_a_sphere(normal),
    "queries rather far from the bank": queries_out(1e4),
    "queries very far from the bank": queries_out(1e12),
    "queries beyond float32 from the bank": lambda normal, way, rng: queries_out(1e55)(
        1e-28 * normal, way, rng
    ),
    "some zero rows and zero queries": lambda normal, way, rng: normal * (rng.random((N + M, 1)) < 0.7),
    "furthest first": lambda normal, way, rng: np.concatenate(
        [0 * normal[:N] + way, way + np.geomspace(10, 1e-5, M)[:, None] * way[::-1]]
    ),
}


def adversary(name: str) -> tuple[F32, Bank]:
    rng = np.random.default_rng(11)
    points = ADVERSARIES[name](rng.normal(size=(N + M, D)), rng.normal(size=D), rng).astype(np.float32)
    return points[:N], Bank(points[N:], rng.normal(size=(M, 5)).astype(np.float32))


@pytest.mark.parametrize("k", [1, 20, 120])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_adversaries(name: str, rank: Any, k: int) -> None:
    queries, bank = adversary(name)
    check(queries, bank, RetrievalSpec(k=k, rank=rank, distance="l2"))


@pytest.mark.parametrize("search", ["matrix product"], indirect=True)
@pytest.mark.parametrize(
    "name", ["tight cluster far out", "huge norms, tight", "near ties", "one huge component"]
)
def test_the_adversaries_defeat_a_plain_float32_search(name: str, search: str) -> None:
    queries, bank = adversary(name)
    index = faiss.IndexFlatL2(D)
    index.add(bank.embedding)
    plain = np.sort(index.search(queries, 20)[1])
    assert (plain != Nearest(bank.embedding, "l2", 20).rows(queries)).any()


@pytest.mark.parametrize("rank", RANKS)
def test_faiss_stays_within_the_stated_bound(rank: Any, search: str) -> None:
    """|s - t| <= e for the k nearest of every adversary, t from the unrounded points in long double."""
    measured = 0
    for name in ADVERSARIES:
        queries, bank = adversary(name)
        near = Nearest(bank.embedding, rank, 20)
        points = near._points(queries)
        within = np.abs(points).max(axis=1) <= nearest._FAR
        if not within.any() or (rank == "cosine" and not queries.any()):
            continue
        queries, points, measured = queries[within], points[within], measured + 1
        scores, candidates = near._index.search(points, 20)
        error = near._error(points, scores[:, -1].astype(np.float64))
        q, b = queries[:, None].astype(np.longdouble), bank.embedding[candidates].astype(np.longdouble)
        worst = np.abs(scores - true_scores(rank, q, b, near._scale)) - error[:, None]
        # Zero queries have no direction and are never searched for.
        worst[(rank == "cosine") & ~queries.any(axis=1)] = 0
        assert (worst <= 0).all(), name
        if rank != "l1":
            lengths = np.linalg.norm(points.astype(np.float64), axis=1)[:, None] + np.linalg.norm(
                near._points(bank.embedding)[candidates].astype(np.float64), axis=2
            )
            assert (error[:, None] >= near._gamma * lengths**2).all(), name
    assert measured >= len(ADVERSARIES) - 5


def true_scores(rank: str, q: Any, b: Any, scale: float) -> Any:
    """The score that FAISS approximates, from long double [n, 1, D] and [n, k, D]: [n, k]."""
    if rank == "l1":
        return np.abs(q - b).sum(axis=-1) * scale
    if rank == "l2":
        return ((q - b) ** 2).sum(axis=-1) * np.longdouble(scale) ** 2
    q, b = (
        x / np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), np.longdouble(1e-60)) for x in (q, b)
    )
    return np.where(b.any(axis=-1), ((q - b) ** 2).sum(axis=-1), 2) * np.longdouble(scale) ** 2
