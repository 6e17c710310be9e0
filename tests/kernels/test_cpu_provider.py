"""The cpu provider beyond test_kernels.py: large banks, every instruction set, threads."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mclst.kernels.cpu import compiled, provider
from mclst.kernels.definition import reference
from mclst.kernels.definition.contract import ProviderError
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import DISTANCES, NEIGHBOR_WEIGHTINGS, RANKS, RetrievalSpec
from mclst.kernels.retriever import Retriever

if not compiled.built():
    pytest.skip("the cpu provider was installed without a C++ compiler", allow_module_level=True)

from mclst.kernels.cpu.provider import CpuProvider

F32 = NDArray[np.float32]
ISAS = range(compiled.library().mclst_best_lanes() + 1)


def blobs(n: int, m: int, d: int, genes: int = 5, seed: int = 0) -> tuple[F32, F32, F32]:
    """Queries [n, d], bank [m, d] and expression [m, genes], in six clusters."""
    rng = np.random.default_rng(seed)
    centers = 2 * rng.normal(size=(6, d))
    points = (centers[rng.integers(6, size=n + m)] + rng.normal(size=(n + m, d))).astype(np.float32)
    return points[:n], points[n:], rng.gamma(1.0, size=(m, genes)).astype(np.float32)


def assert_right(got: RetrievalResult, queries: F32, bank: F32, expression: F32, spec: RetrievalSpec) -> None:
    expected = reference.aggregate(queries, bank, expression, spec, neighbors=True)
    np.testing.assert_array_equal(got.neighbors, expected.neighbors)
    tolerance = 6e-7 * float(np.abs(expression).max())
    np.testing.assert_allclose(got.expression, expected.expression, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.nearest, expected.nearest, rtol=2e-7)
    np.testing.assert_allclose(got.effective_k, expected.effective_k, rtol=2e-7)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("d", "k"), [(7, 1), (64, 90), (33, 1500)])
def test_every_instruction_set_over_several_chunks(isa: int, rank: Any, d: int, k: int) -> None:
    queries, bank, expression = blobs(67, 5000, d, genes=70)
    spec = RetrievalSpec(k=k, rank=rank, distance="l2")
    got = CpuProvider(bank, expression, spec, isa=isa).aggregate(queries, neighbors=True)
    assert_right(got, queries, bank, expression, spec)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("weighting", NEIGHBOR_WEIGHTINGS)
def test_every_weight_on_every_instruction_set(isa: int, distance: Any, weighting: Any) -> None:
    queries, bank, expression = blobs(9, 400, 21)
    spec = RetrievalSpec(k=30, rank="l2", distance=distance, weighting=weighting, temperature=2.0)
    got = CpuProvider(bank, expression, spec, isa=isa).aggregate(queries, neighbors=True)
    assert_right(got, queries, bank, expression, spec)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weighting", NEIGHBOR_WEIGHTINGS)
def test_rows_of_one_direction_are_at_cosine_distance_0(isa: int, weighting: Any) -> None:
    queries, bank, expression = blobs(4, 300, 37)
    scale = np.random.default_rng(2).uniform(0.1, 9, size=(40, 1)).astype(np.float32)
    # Powers of two besides: exactly one direction, and directions that rounding to float32 has moved.
    bank[100:140] = queries[1] * scale
    bank[120:140] = queries[1] * np.exp2(np.rint(scale[20:]))
    for k in (60, 300):
        spec = RetrievalSpec(k=k, rank="l2", distance="cosine", weighting=weighting)
        got = CpuProvider(bank, expression, spec, isa=isa).aggregate(queries, neighbors=True)
        assert_right(got, queries, bank, expression, spec)


@pytest.mark.parametrize(
    ("m", "k", "genes", "distance"),
    [(11_372, 200, 785, "l1"), (11_372, 200, 785, "l2"), (8_209, 600, 171, "l2"), (24_787, 2400, 685, "l2")],
)
def test_the_published_shapes(m: int, k: int, genes: int, distance: Any) -> None:
    queries, bank, expression = blobs(3, m, 256, genes)
    spec = RetrievalSpec(k=k, rank="cosine", distance=distance)
    got = CpuProvider(bank, expression, spec).aggregate(queries, neighbors=True)
    assert_right(got, queries, bank, expression, spec)


@pytest.mark.parametrize("genes", [1, 15, 16, 17, 63, 64, 65, 129])
@pytest.mark.parametrize("isa", ISAS)
def test_genes_that_do_not_fill_a_slab(genes: int, isa: int) -> None:
    queries, bank, expression = blobs(6, 300, 8, genes)
    spec = RetrievalSpec(k=37)
    got = CpuProvider(bank, expression, spec, isa=isa).aggregate(queries, neighbors=True)
    assert_right(got, queries, bank, expression, spec)


@pytest.mark.parametrize("rank", RANKS)
def test_a_bank_in_order_of_distance(rank: Any) -> None:
    """Sorted rows do not mislead the limit, which comes from the first rows of a shuffled bank."""
    queries, bank, expression = blobs(3, 6000, 12)
    by_distance = np.argsort(reference.bank_scores(rank, queries[0], bank), kind="stable")
    spec = RetrievalSpec(k=40, rank=rank)
    for order in (by_distance, by_distance[::-1]):
        rows, genes = np.ascontiguousarray(bank[order]), np.ascontiguousarray(expression[order])
        assert_right(
            CpuProvider(rows, genes, spec).aggregate(queries, neighbors=True), queries, rows, genes, spec
        )


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("copies", [150, 4900])
def test_more_equal_rows_than_there_is_room_for(rank: Any, copies: int) -> None:
    """Ties across the cutoff: a few are decided among themselves, many by scoring every row."""
    queries, bank, expression = blobs(4, 5000, 6)
    bank[np.random.default_rng(1).permutation(5000)[:copies]] = queries[0] + np.float32(0.125)
    spec = RetrievalSpec(k=60, rank=rank)
    assert_right(
        CpuProvider(bank, expression, spec).aggregate(queries, neighbors=True),
        queries,
        bank,
        expression,
        spec,
    )


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("m", [6000, 10_000])
@pytest.mark.parametrize("isa", ISAS)
def test_rows_that_int16_cannot_tell_apart(rank: Any, m: int, isa: int) -> None:
    """Two tight clusters far apart: all rows of one are undecided; in the larger bank, more than fit."""
    rng = np.random.default_rng(4)
    way = rng.normal(size=40)
    side = np.where(rng.random(m + 6) < 0.5, 60.0, -60.0)[:, None]
    points = (side * way + 1e-4 * rng.normal(size=(m + 6, 40))).astype(np.float32)
    queries, bank, expression = points[:6], points[6:], rng.random((m, 3), dtype=np.float32)
    spec = RetrievalSpec(k=25, rank=rank, distance="l2")
    got = CpuProvider(bank, expression, spec, isa=isa).aggregate(queries, neighbors=True)
    np.testing.assert_array_equal(
        got.neighbors, reference.aggregate(queries, bank, expression, spec, neighbors=True).neighbors
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("d", [1, 2, 3, 64, 4096])
def test_the_longest_integer_vectors_do_not_overflow(d: int, isa: int) -> None:
    """Rows along an axis and along the diagonal: products near the limits of int32."""
    rng = np.random.default_rng(d)
    axis, diagonal = np.eye(d)[0], np.ones(d)
    length = rng.uniform(0.9, 1, size=(200, 1)) * rng.choice([-1, 1], size=(200, 1))
    bank = (length * np.where(rng.random((200, 1)) < 0.5, axis, diagonal)).astype(np.float32)
    queries = np.array([axis, -axis, diagonal, -diagonal], dtype=np.float32)
    spec = RetrievalSpec(k=11, rank="l2", distance="l2", weighting="uniform")
    got = CpuProvider(bank, bank[:, :1].copy(), spec, isa=isa).aggregate(queries, neighbors=True)
    assert_right(got, queries, bank, bank[:, :1], spec)


def test_sums_of_many_stay_within_the_stated_error() -> None:
    """Uniform weights over a whole bank of positive values, where naive float32 sums drift."""
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(30_000, 2)).astype(np.float32)
    expression = rng.uniform(0.5, 1, size=(30_000, 3)).astype(np.float32)
    spec = RetrievalSpec(k=30_000, weighting="uniform")
    got = CpuProvider(bank, expression, spec).aggregate(bank[:2], neighbors=False).expression
    expected = expression.astype(np.float64).mean(axis=0)
    assert np.abs(got - expected).max() <= 10 * 2.0**-24
    naive = np.cumsum(expression / np.float32(30_000), axis=0, dtype=np.float32)[-1]
    assert np.abs(naive - expected).max() > 10 * 2.0**-24


@pytest.mark.parametrize("rank", RANKS)
def test_threads_and_blocks_change_no_bit(rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank, expression = blobs(150, 3000, 24, genes=80)
    spec = RetrievalSpec(k=33, rank=rank)
    expected = CpuProvider(bank, expression, spec, threads=1).aggregate(queries, neighbors=True)
    others = [CpuProvider(bank, expression, spec, threads=threads) for threads in (2, 7)]
    answers = [other.aggregate(queries, neighbors=True) for other in others]
    monkeypatch.setattr(provider, "_BLOCK_BYTES", 16 * 33 * 40)
    answers.append(others[0].aggregate(queries, neighbors=True))
    for answer in answers:
        for field in ("expression", "nearest", "effective_k", "neighbors"):
            np.testing.assert_array_equal(getattr(answer, field), getattr(expected, field))
    alone = [others[0].aggregate(queries[i : i + 1], neighbors=False).expression for i in (0, 77, 149)]
    np.testing.assert_array_equal(np.concatenate(alone), expected.expression[[0, 77, 149]])


@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 5000),
    share=st.floats(0, 1),
    d=st.integers(1, 9),
    spread=st.integers(1, 60),
    rank=st.sampled_from(RANKS),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**32),
)
def test_whole_numbers_have_ties_everywhere(
    m: int, share: float, d: int, spread: int, rank: Any, isa: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(-spread, spread + 1, size=(m + 5, d)).astype(np.float32)
    queries, bank, expression = points[:5], points[5:], rng.random((m, 2), dtype=np.float32)
    spec = RetrievalSpec(k=1 + int(share * (m - 1)), rank=rank, distance="l2", weighting="softmax")
    got = CpuProvider(bank, expression, spec, isa=isa).aggregate(queries, neighbors=True)
    expected = reference.aggregate(queries, bank, expression, spec, neighbors=True)
    np.testing.assert_array_equal(got.neighbors, expected.neighbors)
    np.testing.assert_allclose(got.expression, expected.expression, rtol=0, atol=1e-6)


def test_real_embeddings_of_tissue(her2st: Path) -> None:
    arrays = np.load(her2st / "reference" / "C4.npz")
    queries, bank = (np.ascontiguousarray(arrays[n], np.float32) for n in ("embedding", "bank_embedding"))
    expression = np.random.default_rng(0).random((len(bank), 40), dtype=np.float32)
    for rank in RANKS:
        spec = RetrievalSpec(k=50, rank=rank)  # type: ignore[arg-type]
        got = CpuProvider(bank, expression, spec).aggregate(queries, neighbors=True)
        assert_right(got, queries, bank, expression, spec)


def test_threads_follow_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, threads in (("3", 3), ("2,1", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
        assert provider._threads() == threads
    for setting in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
        assert provider._threads() >= 1


def test_a_library_that_does_not_load_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, bank, expression = blobs(2, 30, 3)
    broken = tmp_path / "_cpu.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(compiled, "_path", lambda: broken)
    compiled.library.cache_clear()
    try:
        with pytest.raises(ProviderError, match=r"_cpu\.so does not load.*choose provider 'faiss'"):
            Retriever(_Bank(bank, expression), RetrievalSpec(k=3), "cpu")
    finally:
        compiled.library.cache_clear()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_bank_is_given_back() -> None:
    _, bank, expression = blobs(1, 20_000, 64)
    spec = RetrievalSpec(k=3)
    used = []
    for _ in range(12):
        CpuProvider(bank, expression, spec)
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        used.append((resident - shared) * os.sysconf("SC_PAGE_SIZE"))
    # What is never given back shows in every later figure; what a thread takes meanwhile may come and go.
    assert min(used[-5:]) - used[2] < 4 * bank.nbytes


class _Bank:
    def __init__(self, embedding: F32, expression: F32) -> None:
        self.embedding, self.expression = embedding, expression
