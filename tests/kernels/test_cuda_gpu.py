"""The cuda provider on a device; `make gpu-check` runs this file.

Needs numpy, scipy, pytest and PyCUDA or cuda-bindings; with torch, device arrays are tested too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from retrieval_cases import ADVERSARIES, SPECS, WAYS, Bank, adversary, assert_same, clustered, spec_name

from mclst.kernels.cuda.cuda_bindings import CudaBindings
from mclst.kernels.cuda.devices import open_driver
from mclst.kernels.cuda.driver import Driver
from mclst.kernels.cuda.provider import CudaProvider
from mclst.kernels.cuda.pycuda_driver import PyCuda
from mclst.kernels.definition import reference
from mclst.kernels.definition.contract import ProviderError
from mclst.kernels.definition.spec import RANKS, RetrievalSpec
from mclst.kernels.retriever import Retriever

pytestmark = pytest.mark.gpu
GIB = 1 << 30
# Banks, neighbors and genes of the published cases.
PUBLISHED = {"her2st": (11_372, 200, 785), "cSCC": (8_209, 600, 171), "Visium": (24_787, 2400, 685)}


try:
    DRIVER = open_driver()
except ProviderError as why_not:
    pytest.skip(str(why_not), allow_module_level=True)


@pytest.fixture(scope="module")
def driver() -> Driver:
    DRIVER.load()
    return DRIVER


@pytest.fixture
def made(driver: Driver) -> Iterator[Any]:
    """Make providers; their memory is freed after the test."""
    opened: list[CudaProvider] = []

    def make(bank: Bank, spec: RetrievalSpec, **how: Any) -> CudaProvider:
        opened.append(
            CudaProvider(
                bank.embedding, bank.expression, spec, driver=driver, **({"workspace_bytes": GIB} | how)
            )
        )
        return opened[-1]

    yield make
    for cuda in opened:
        cuda.release()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spec", SPECS, ids=spec_name)
def test_every_spec(made: Any, spec: RetrievalSpec, way: str) -> None:
    queries, bank = clustered(90, 600, 70, genes=33)
    assert_same(made(bank, spec, **WAYS[way]).aggregate(queries, neighbors=True), queries, bank, spec)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_adversaries(made: Any, name: str, rank: Any, way: str) -> None:
    queries, bank = adversary(name)
    for k in (1, 17, 120):
        spec = RetrievalSpec(k=k, rank=rank, distance="l2")
        assert_same(made(bank, spec, **WAYS[way]).aggregate(queries, neighbors=True), queries, bank, spec)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("d", [1, 3, 255, 256, 257, 1536, 4096])
@pytest.mark.parametrize(
    ("n", "m", "k"), [(0, 9, 2), (1, 1, 1), (1, 500, 40), (257, 500, 499), (3, 500, 500)]
)
def test_odd_shapes(made: Any, rank: Any, d: int, n: int, m: int, k: int) -> None:
    queries, bank = clustered(n, m, d, genes=1 if d == 3 else 130)
    spec = RetrievalSpec(k=k, rank=rank)
    assert_same(made(bank, spec).aggregate(queries, neighbors=True), queries, bank, spec)


@pytest.mark.parametrize("spec", ["published", "softmax over l2"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(made: Any, name: str, spec: str) -> None:
    """All queries of a section through the kernels; forty of them against the definition."""
    m, k, genes = PUBLISHED[name]
    queries, bank = clustered(3000, m, 256, genes=genes)
    retrieval = (
        RetrievalSpec(k=k, rank="cosine", distance="l1")
        if spec == "published"
        else RetrievalSpec(k=k, rank="l2", distance="l2", weighting="softmax", temperature=2.0)
    )
    cuda = made(bank, retrieval)
    whole = cuda.aggregate(queries)
    subset = slice(0, 3000, 75)
    checked = cuda.aggregate(queries[subset], neighbors=True)
    assert_same(checked, queries[subset], bank, retrieval)
    np.testing.assert_array_equal(whole.expression[subset], checked.expression)
    exact_count = np.empty(1, dtype=np.uint32)
    cuda.aggregate(queries)
    cuda._driver.download(exact_count, cuda._memory["exact_count"])
    assert exact_count[0] < 0.01 * len(queries)


def test_a_bank_beyond_31_bits(made: Any) -> None:
    """M·D above 2^31: the last rows are found too."""
    rng = np.random.default_rng(0)
    m, d = (1 << 22) + 5, 513
    embedding = np.zeros((m, d), dtype=np.float32)
    embedding[:, :8] = rng.normal(size=(m, 8))
    bank = Bank(embedding, rng.random(size=(m, 3), dtype=np.float32))
    spec = RetrievalSpec(k=5, rank="l2", distance="l2")
    queries = embedding[[0, m // 2, m - 1]]
    got = made(bank, spec, workspace_bytes=4 * GIB).aggregate(queries, neighbors=True)
    assert got.neighbors[:, 0].tolist() == [0, m // 2, m - 1]
    for query, rows in zip(queries, got.neighbors, strict=True):
        scores = ((query[:8].astype(np.float64) - embedding[:, :8]) ** 2).sum(axis=1)
        assert rows.tolist() == np.argsort(scores, kind="stable")[:5].tolist()


@pytest.mark.parametrize("way", WAYS)
def test_a_query_has_the_same_bits_in_any_block_and_any_run(made: Any, way: str) -> None:
    queries, bank = clustered(700, 2000, 64, genes=150)
    spec = RetrievalSpec(k=90, rank="cosine", distance="l2")
    cuda = made(bank, spec, **WAYS[way])
    first = cuda.aggregate(queries)
    blocked = made(bank, spec, **(WAYS[way] | {"workspace_bytes": 3 << 20}))
    assert blocked.plan.queries < 300
    for other in (cuda.aggregate(queries), blocked.aggregate(queries)):
        np.testing.assert_array_equal(other.expression, first.expression)
        np.testing.assert_array_equal(other.effective_k, first.effective_k)


@pytest.mark.parametrize("binding", [CudaBindings, PyCuda])
def test_either_binding_shares_the_device_with_torch(binding: type[Driver], driver: Driver) -> None:
    torch = pytest.importorskip("torch")
    try:
        opened = binding(0)  # type: ignore[call-arg]
    except (ImportError, ProviderError) as error:
        pytest.skip(str(error))
    queries, bank = clustered(300, 2000, 64, genes=150)
    spec = RetrievalSpec(k=90, rank="l2")
    cuda = CudaProvider(bank.embedding, bank.expression, spec, driver=opened, workspace_bytes=GIB)
    on_device = torch.from_numpy(queries).cuda()
    result = cuda.aggregate_from(on_device * 1.0)
    expected = reference.aggregate(queries, bank.embedding, bank.expression, spec)
    tolerance = 1e-6 * bank.expression.max()
    np.testing.assert_allclose(result.expression, expected.expression, rtol=0, atol=tolerance)
    np.testing.assert_allclose(result.nearest, expected.nearest, rtol=1e-6)
    on_device[5, 6] = torch.nan
    with pytest.raises(ValueError, match="row 5 of the embeddings holds NaN"):
        cuda.aggregate_from(on_device)
    cuda.release()
    assert float((on_device.nan_to_num() @ on_device.nan_to_num().T).sum()) == pytest.approx(
        float((queries.astype(np.float64) @ queries.T).sum()), rel=0.1
    )


def test_through_the_door(driver: Driver) -> None:
    queries, bank = clustered(30, 400, 32)
    spec = RetrievalSpec(k=20)
    assert_same(Retriever(bank, spec, "cuda").aggregate(queries, neighbors=True), queries, bank, spec)
