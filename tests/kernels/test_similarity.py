"""Weighting by similarity over the whole bank: two matrix products against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_cases import Bank, assert_same

from mclst.kernels import RetrievalSpec, Retriever
from mclst.kernels.definition import reference
from mclst.kernels.definition.contract import NoWeights
from mclst.kernels.shards import Shard, aggregate

PROVIDERS = ("reference", "cpu", "faiss")


def alike(n: int, m: int, d: int, shift: float, seed: int = 0, genes: int = 7) -> tuple[np.ndarray, Bank]:
    """Queries and a bank around one direction, as embeddings of CLIP are, of any lengths."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n + m, d)) + shift * np.ones(d)
    points *= 10.0 ** rng.uniform(-3, 3, size=(n + m, 1))
    expression = rng.gamma(1.0, size=(m, genes)).astype(np.float32)
    return points[:n].astype(np.float32), Bank(points[n:].astype(np.float32), expression)


def spec_of(bank: Bank, rank: str = "cosine") -> RetrievalSpec:
    return RetrievalSpec(len(bank.embedding), rank, "cosine", "similarity")  # type: ignore[arg-type]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_it_is_the_mean_of_all_rows_weighted_by_their_cosine(provider: str) -> None:
    queries, bank = alike(9, 400, 24, shift=1.0)
    similarity = np.empty((9, 400))
    for i, q in enumerate(queries.astype(np.float64)):
        for j, b in enumerate(bank.embedding.astype(np.float64)):
            similarity[i, j] = q @ b / np.sqrt((q @ q) * (b @ b))
    share = similarity / similarity.sum(axis=1, keepdims=True)
    got = Retriever(bank, spec_of(bank), provider).aggregate(queries, neighbors=True)
    most = np.abs(bank.expression).max()
    np.testing.assert_allclose(got.expression, share @ bank.expression, rtol=0, atol=1e-6 * most)
    np.testing.assert_allclose(got.nearest, 1 - similarity.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(got.effective_k, 1 / np.square(share).sum(axis=1), rtol=1e-6)
    assert got.neighbors is not None and np.array_equal(got.neighbors[:, 0], similarity.argmax(axis=1))


@given(
    st.integers(0, 6), st.integers(1, 60), st.integers(1, 12), st.floats(0.4, 4), st.booleans(),
    st.sampled_from(["cosine", "l2", "l1"]), st.integers(0, 2**31),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_every_provider_equals_the_definition(
    n: int, m: int, d: int, shift: float, zeros: bool, rank: str, seed: int
) -> None:
    queries, bank = alike(n, m, d, shift, seed)
    if zeros and m > 1:
        bank.embedding[seed % m] = 0
    spec = spec_of(bank, rank)
    try:
        reference.aggregate(queries, bank.embedding, bank.expression, spec)
    except NoWeights as expected:
        for provider in PROVIDERS:
            with pytest.raises(NoWeights) as refused:
                Retriever(bank, spec, provider).aggregate(queries)
            assert refused.value.row == expected.row
            assert refused.value.total == pytest.approx(expected.total, abs=1e-9 * m)
        return
    cosines = reference.directions(queries) @ reference.directions(bank.embedding).T
    # A sum near 0 enlarges the weights, and with them the values.
    enlarged = float((np.abs(cosines).sum(axis=1) / cosines.sum(axis=1)).max(initial=1))
    for provider in PROVIDERS:
        got = Retriever(bank, spec, provider).aggregate(queries, neighbors=True)
        assert_same(got, queries, bank, spec, tolerance=1e-6 * enlarged)


def test_similarities_that_add_up_to_nothing_are_no_weights() -> None:
    rng = np.random.default_rng(3)
    half = rng.normal(size=(30, 8)).astype(np.float32)
    bank = Bank(np.concatenate([half, -half]), rng.random((60, 4)).astype(np.float32))
    queries = np.stack([half.sum(axis=0), half[0]])
    for provider in PROVIDERS:
        with pytest.raises(NoWeights, match=r"cosines of row 0 .* choose another weighting"):
            Retriever(bank, spec_of(bank), provider).aggregate(queries)
    queries, bank = alike(3, 20, 5, shift=2.0)
    queries[2] = 0
    for provider in PROVIDERS:
        with pytest.raises(NoWeights, match="row 2"):
            Retriever(bank, spec_of(bank), provider).aggregate(queries)


def test_it_takes_the_whole_bank_and_cosines() -> None:
    _, bank = alike(1, 20, 5, shift=1.0)
    with pytest.raises(ValueError, match="over the whole bank and k is 19; give k 20"):
        Retriever(bank, RetrievalSpec(19, "cosine", "cosine", "similarity"))
    with pytest.raises(ValueError, match="is of cosines, not of 'l1'; give distance 'cosine'"):
        RetrievalSpec(20, "cosine", "l1", "similarity")


def test_float16_expression_and_shards_give_the_same() -> None:
    queries, bank = alike(5, 90, 6, shift=1.5)
    bank.expression[:] = bank.expression.astype(np.float16)
    spec = spec_of(bank)
    half = Bank(bank.embedding, bank.expression.astype(np.float16))
    assert_same(Retriever(half, spec).aggregate(queries, neighbors=True), queries, bank, spec)
    parts = [
        Shard(Bank(bank.embedding[rows], bank.expression[rows]), rows.start, spec)
        for rows in (slice(0, 50), slice(50, 90))
    ]
    assert_same(aggregate(queries, parts, spec, neighbors=True), queries, bank, spec)
