"""Banks in float16 and FAISS on a GPU: they change where retrieval runs, not its result."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from mclst.kernels.cpu import compiled
from mclst.kernels.definition import reference
from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.faiss import nearest
from mclst.kernels.retriever import Retriever

COMPARED = ["faiss", "reference", *(["cpu"] if compiled.built() else [])]


def made(m: int, d: int = 24) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(m)
    points = rng.normal(size=(m + 11, d)).astype(np.float32)
    return points[:11], points[11:], rng.gamma(1.0, size=(m, 33)).astype(np.float32)


@pytest.mark.parametrize("provider", COMPARED)
def test_float16_expression_is_averaged_as_the_numbers_it_holds(provider: str) -> None:
    queries, embedding, expression = made(300)
    spec, half = RetrievalSpec(k=20, distance="l1"), expression.astype(np.float16)
    got = Retriever(SimpleNamespace(embedding=embedding, expression=half), spec, provider).aggregate(queries)
    expected = reference.aggregate(queries, embedding, half.astype(np.float32), spec, neighbors=False)
    assert got.expression.dtype == np.float32
    tolerance = 1e-6 * float(half.max())
    np.testing.assert_allclose(got.expression, expected.expression, rtol=0, atol=tolerance)
    unrounded = reference.aggregate(queries, embedding, expression, spec, neighbors=False)
    assert np.abs(got.expression - unrounded.expression).max() > tolerance


def test_an_infinite_float16_is_refused_by_row() -> None:
    _, embedding, expression = made(30)
    half = expression.astype(np.float16)
    half[17, 2] = np.inf
    with pytest.raises(ValueError, match="row 17 of the bank's expression holds inf in column 2"):
        Retriever(SimpleNamespace(embedding=embedding, expression=half), RetrievalSpec(k=3))


class OnGpu:
    """A FAISS GPU index, which searches for at most 2,048 neighbors."""

    def __init__(self, index: Any) -> None:
        self.index, self.requested = index, list[int]()

    def search(self, points: Any, k: int) -> Any:
        assert k <= 2048
        self.requested.append(k)
        return self.index.search(points, k)


@pytest.mark.parametrize(
    ("rank", "k", "on_gpu"), [("cosine", 50, True), ("l2", 50, True), ("l2", 2400, False), ("l1", 50, False)]
)
def test_faiss_searches_on_a_gpu_where_it_can(
    rank: Any, k: int, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAISS on the CPU with the limit of FAISS on a GPU."""
    moved: list[OnGpu] = []

    def move(resources: Any, device: int, index: Any) -> OnGpu:
        moved.append(OnGpu(index))
        return moved[-1]

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", move, raising=False)
    queries, embedding, expression = made(3000)
    spec = RetrievalSpec(k=k, rank=rank, distance="l2")
    bank = SimpleNamespace(embedding=embedding, expression=expression)
    got = Retriever(bank, spec, "faiss").aggregate(queries, neighbors=True)
    expected = reference.aggregate(queries, embedding, expression, spec, neighbors=True)
    np.testing.assert_array_equal(got.neighbors, expected.neighbors)
    assert bool(moved and moved[0].requested) == on_gpu


def test_no_gpu_no_copy() -> None:
    assert nearest._copy_on_gpu(faiss.IndexFlat(3, faiss.METRIC_L2)) is None
