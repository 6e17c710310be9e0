"""A sharded bank against the whole bank: the same rows, ties included, and the same expression."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mclst.kernels.cpu.compiled import built
from mclst.kernels.definition.reference import aggregate as whole_bank
from mclst.kernels.definition.spec import DISTANCES, NEIGHBOR_WEIGHTINGS, RANKS, RetrievalSpec
from mclst.kernels.shards import Candidates, Shard, aggregate, merge


@dataclass
class Rows:
    embedding: np.ndarray
    expression: np.ndarray


def in_shards(bank: Rows, cuts: list[int], spec: RetrievalSpec, provider: str) -> list[Shard]:
    edges = [0, *cuts, len(bank.embedding)]
    return [
        Shard(Rows(bank.embedding[a:b].copy(), bank.expression[a:b].copy()), a, spec, provider)
        for a, b in pairwise(edges)
        if b > a
    ]


@pytest.mark.parametrize("provider", ["reference", "faiss", *(["cpu"] if built() else [])])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_shards_choose_what_the_whole_bank_chooses(provider: str, data: st.DataObject) -> None:
    """Integers from -1 to 1 in few columns: most rows are repeated, also across shards."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    rows, columns = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 4))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=5)))
    spec = RetrievalSpec(
        data.draw(st.integers(1, rows)),
        data.draw(st.sampled_from(RANKS)),
        data.draw(st.sampled_from(DISTANCES)),
        data.draw(st.sampled_from(NEIGHBOR_WEIGHTINGS)),
        data.draw(st.sampled_from([0.1, 1.0, 30.0])),
    )
    bank = Rows(
        rng.integers(-1, 2, (rows, columns)).astype(np.float32),
        rng.normal(0, 3, (rows, 7)).astype(np.float32),
    )
    queries = rng.integers(-1, 2, (9, columns)).astype(np.float32)
    expected = whole_bank(queries, bank.embedding, bank.expression, spec, neighbors=True)
    result = aggregate(queries, in_shards(bank, cuts, spec, provider), spec, neighbors=True)
    assert result.neighbors is not None and expected.neighbors is not None
    assert np.array_equal(result.neighbors, expected.neighbors)
    assert result.expression.dtype == np.float32
    assert np.abs(result.expression - expected.expression).max() <= 1e-6 * np.abs(bank.expression).max()
    assert np.array_equal(result.nearest, expected.nearest)
    np.testing.assert_allclose(result.effective_k, expected.effective_k, rtol=1e-6)


@pytest.mark.parametrize("provider", ["faiss", "auto"])
def test_a_bank_of_a_real_shape(provider: str) -> None:
    rng = np.random.default_rng(11)
    bank = Rows(
        rng.normal(size=(3000, 64)).astype(np.float32), rng.normal(size=(3000, 50)).astype(np.float32)
    )
    bank.embedding[2000:2500] = bank.embedding[100:600]
    queries = np.concatenate([rng.normal(size=(20, 64)), bank.embedding[110:120]]).astype(np.float32)
    spec = RetrievalSpec(600, "cosine", "l1", "inverse-square")
    expected = whole_bank(queries, bank.embedding, bank.expression, spec, neighbors=True)
    result = aggregate(queries, in_shards(bank, [400, 1000, 2250], spec, provider), spec, neighbors=True)
    assert result.neighbors is not None and expected.neighbors is not None
    assert np.array_equal(result.neighbors, expected.neighbors)
    assert np.abs(result.expression - expected.expression).max() <= 1e-6 * np.abs(bank.expression).max()


def test_the_order_of_shards_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    bank = Rows(rng.integers(0, 2, (40, 3)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32))
    queries = rng.integers(0, 2, (6, 3)).astype(np.float32)
    spec = RetrievalSpec(13, "l2", "l2", "softmax")
    shards = in_shards(bank, [9, 20, 33], spec, "reference")
    forward, backward = (aggregate(queries, order, spec, neighbors=True) for order in (shards, shards[::-1]))
    assert forward.neighbors is not None and backward.neighbors is not None
    assert np.array_equal(forward.neighbors, backward.neighbors)
    np.testing.assert_allclose(forward.expression, backward.expression, rtol=1e-6)


def test_no_query_and_too_large_a_k() -> None:
    bank = Rows(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32))
    spec = RetrievalSpec(3)
    shards = in_shards(bank, [2], spec, "reference")
    assert aggregate(np.empty((0, 4), np.float32), shards, spec).expression.shape == (0, 4)
    few = Candidates(np.zeros((1, 2), np.int64), np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="k is 5 and the shards have 4 rows"):
        merge([few, few], 5)
