"""Retrieval: what must not change the answer, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from retrieval_cases import SPECS, Bank, clustered, spec_name

from mclst.kernels import retriever
from mclst.kernels.cpu.compiled import built
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import DISTANCES, RANKS, RetrievalSpec
from mclst.kernels.faiss import nearest
from mclst.kernels.retriever import Retriever

# Providers compared with the reference.
COMPARED = ["faiss", "cpu"] if built() else ["faiss"]


def rows(got: RetrievalResult) -> NDArray[np.int64]:
    assert got.neighbors is not None and got.neighbors.dtype == np.int64
    return got.neighbors


@pytest.mark.parametrize("rank", RANKS)
def test_the_order_of_the_bank_matters_to_no_set_without_ties(rank: Any) -> None:
    queries, bank = clustered(20, 200, 10)
    spec = RetrievalSpec(k=15, rank=rank)
    order = np.random.default_rng(1).permutation(200)
    shuffled = Bank(bank.embedding[order], bank.expression[order])
    first, second = (Retriever(b, spec).aggregate(queries, neighbors=True) for b in (bank, shuffled))
    np.testing.assert_array_equal(order[rows(second)], first.neighbors)
    np.testing.assert_allclose(second.expression, first.expression, rtol=1e-6)


@pytest.mark.parametrize("provider", [*COMPARED, "reference"])
@pytest.mark.parametrize("spec", [s for s in SPECS if not s.weighting.startswith("softmax")], ids=spec_name)
def test_a_power_of_two_scales_the_distance_and_nothing_else(provider: str, spec: RetrievalSpec) -> None:
    queries, bank = clustered(20, 200, 10)
    first = Retriever(bank, spec, provider).aggregate(queries, neighbors=True)
    for scale in np.float32(2.0**-50), np.float32(2.0**50):
        scaled = Bank(bank.embedding * scale, bank.expression)
        second = Retriever(scaled, spec, provider).aggregate(queries * scale, neighbors=True)
        np.testing.assert_array_equal(second.neighbors, first.neighbors)
        np.testing.assert_array_equal(second.expression, first.expression)
        np.testing.assert_array_equal(
            second.nearest, first.nearest * (1 if spec.distance == "cosine" else scale)
        )


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_query_has_the_same_bits_in_any_block(
    rank: Any, distance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, bank = clustered(70, 300, 40, genes=50)
    spec = RetrievalSpec(k=25, rank=rank, distance=distance)
    whole = Retriever(bank, spec, "faiss").aggregate(queries, neighbors=True)
    made = Retriever(bank, spec, "faiss")
    parts = [
        made.aggregate(queries[start:stop], neighbors=True) for start, stop in ((0, 1), (1, 23), (23, 70))
    ]
    monkeypatch.setattr(retriever, "_CHECKED_BYTES", 8_000)
    monkeypatch.setattr(nearest, "_BLOCK_BYTES", 5_000)
    blocked = Retriever(bank, spec, "faiss").aggregate(queries, neighbors=True)
    for field in ("expression", "nearest", "effective_k", "neighbors"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field)
        )
        np.testing.assert_array_equal(getattr(blocked, field), getattr(whole, field))


def test_a_query_has_the_same_bits_on_any_number_of_threads() -> None:
    queries, bank = clustered(70, 300, 40, genes=50)
    before, got = faiss.omp_get_max_threads(), []
    try:
        for threads in (1, 3):
            faiss.omp_set_num_threads(threads)
            got.append(Retriever(bank, RetrievalSpec(k=25), "faiss").aggregate(queries).expression)
    finally:
        faiss.omp_set_num_threads(before)
    np.testing.assert_array_equal(got[0], got[1])


def test_strided_inputs_are_read_as_they_stand() -> None:
    queries, bank = clustered(20, 100, 12)
    turned = Bank(np.asfortranarray(bank.embedding), np.repeat(bank.expression, 2, axis=1)[:, ::2])
    first, second = (Retriever(b, RetrievalSpec(k=9)).aggregate(queries) for b in (bank, turned))
    np.testing.assert_array_equal(second.expression, first.expression)
    third = Retriever(bank, RetrievalSpec(k=9)).aggregate(np.asfortranarray(queries))
    np.testing.assert_array_equal(third.expression, first.expression)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e30])
@pytest.mark.parametrize("provider", [*COMPARED, "reference"])
def test_a_value_that_is_no_number_is_refused_by_row(provider: str, value: float) -> None:
    queries, bank = clustered(6, 50, 8)
    spec = RetrievalSpec(k=3)
    ready = Retriever(bank, spec, provider)
    queries[4, 2] = value
    with pytest.raises(ValueError, match=r"row 4 of the embeddings holds .* in column 2"):
        ready.aggregate(queries)
    bank.embedding[31, 7] = value
    with pytest.raises(ValueError, match=r"row 31 of the bank's embedding holds .* in column 7"):
        Retriever(bank, spec, provider)
    bank.embedding[31, 7], bank.expression[49, 0] = 0, value
    with pytest.raises(ValueError, match=r"row 49 of the bank's expression holds"):
        Retriever(bank, spec, provider)


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    queries, bank = clustered(6, 50, 8)
    for k in (51, 10_000):
        with pytest.raises(ValueError, match=rf"k is {k} and the bank has 50 rows"):
            Retriever(bank, RetrievalSpec(k=k))
    with pytest.raises(ValueError, match="50 rows of embedding and 49 of expression"):
        Retriever(Bank(bank.embedding, bank.expression[:-1]), RetrievalSpec(k=3))
    with pytest.raises(ValueError, match=r"bank's embedding is float64 \[50, 8\]"):
        Retriever(Bank(bank.embedding.astype(np.float64), bank.expression), RetrievalSpec(k=3))
    for empty in (Bank(bank.embedding[:, :0], bank.expression), Bank(bank.embedding, bank.expression[:, :0])):
        with pytest.raises(ValueError, match="has no columns"):
            Retriever(empty, RetrievalSpec(k=3))
    ready = Retriever(bank, RetrievalSpec(k=3))
    with pytest.raises(ValueError, match="have 7 columns and the bank's 8"):
        ready.aggregate(queries[:, :7])
    with pytest.raises(ValueError, match=r"embeddings is float32 \[8\]"):
        ready.aggregate(queries[0])
    with pytest.raises(ValueError, match="embeddings is list"):
        ready.aggregate(queries.tolist())


def test_the_provider_is_named_and_an_unknown_one_refused() -> None:
    _, bank = clustered(0, 20, 4)
    spec = RetrievalSpec(k=3)
    assert Retriever(bank, spec).provider == ("cpu" if built() else "faiss")
    assert Retriever(bank, spec, "faiss").provider == "faiss"
    assert Retriever(bank, spec, "reference").provider == "reference"
    with pytest.raises(ValueError, match=r"provider is 'cudda'; choose one of auto, .*faiss, reference"):
        Retriever(bank, spec, "cudda")


def test_without_faiss_torch_and_the_compiled_part() -> None:
    """Importing needs none of them; a missing provider's error says what to install; the reference runs."""
    code = """
import sys
sys.modules.update(faiss=None, torch=None)
import numpy as np
from types import SimpleNamespace
from mclst.kernels import ProviderError, RetrievalSpec, Retriever
from mclst.kernels.cpu import compiled
compiled.EXTENSION_SUFFIXES.clear()
bank = SimpleNamespace(embedding=np.eye(4, dtype=np.float32), expression=np.eye(4, dtype=np.float32))
for provider in ("auto", "faiss", "cpu"):
    try:
        Retriever(bank, RetrievalSpec(k=2), provider)
    except ProviderError as error:
        print(error)
print(Retriever(bank, RetrievalSpec(k=1), "reference").aggregate(bank.embedding).expression.trace())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *refusals, trace = done.stdout.splitlines()
    assert len(refusals) == 3 and all("install mclst[cpu]" in line for line in refusals[:2])
    assert "install a C++ compiler" in refusals[2]
    assert float(trace) == 4


@pytest.mark.parametrize(
    "field",
    [{"k": 0}, {"k": True}, {"rank": "dot"}, {"distance": "l3"}, {"weighting": "mean"}, {"temperature": 0.0}],
)
def test_a_spec_out_of_range_is_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(field))} is "):
        RetrievalSpec(**field)
