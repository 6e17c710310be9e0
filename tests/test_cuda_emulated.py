"""The CUDA kernels and their provider, run on the CPU under tests/host_cuda, against the float64 definition."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from cuda_cases import ADVERSARIES, SPECS, Bank, adversary, assert_same, clustered, spec_name
from host_driver import FORWARD, HostDriver, compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mclst.kernels import RetrievalSpec, Retrieved
from mclst.kernels.cuda import Cuda
from mclst.kernels.job import Job, Placing
from mclst.kernels.spec import DISTANCES, RANKS, WEIGHTINGS

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not installed, and the emulation needs it")
F32 = NDArray[np.float32]
# How the keys are kept and the mean is taken.
WAYS: dict[str, dict[str, Any]] = {
    "all keys, gathered": {"sample": 0, "dense_from": 2},
    "keys within a limit, gathered": {"sample": 64, "dense_from": 2},
    "keys within a limit, dense": {"sample": 64, "dense_from": 0},
}
SMALL = 8 << 20


def made(bank: Bank, spec: RetrievalSpec, order: int = FORWARD, **how: Any) -> Cuda:
    driver = HostDriver(order=order)
    return Cuda(bank.embedding, bank.expression, spec, driver=driver, **({"workspace_bytes": SMALL} | how))


def run(queries: F32, bank: Bank, spec: RetrievalSpec, order: int = FORWARD, **how: Any) -> Retrieved:
    return made(bank, spec, order, **how).aggregate(queries, neighbours=True)


def array_of(cuda: Cuda, name: str, dtype: Any, *shape: int) -> NDArray[Any]:
    """What a kernel left in the workspace."""
    array = np.empty(shape, dtype=dtype)
    cuda._driver.download(array, cuda._memory[name])
    return array


# --- against the definition ---------------------------------------------------------------------------------------


def test_host_and_kernels_lay_their_structures_out_alike() -> None:
    calls = HostDriver().calls
    for which, structure, field in ((0, Placing, Placing.rank), (1, Job, Job.half_expression)):
        assert calls.host_cuda_size(which) == ctypes.sizeof(structure)
        assert calls.host_cuda_place(which) == field.offset


@pytest.mark.parametrize("spec", SPECS, ids=spec_name)
def test_every_spec(spec: RetrievalSpec) -> None:
    queries, bank = clustered(9, 150, 13)
    how = list(WAYS.values())[SPECS.index(spec) % len(WAYS)]
    assert_same(run(queries, bank, spec, **how), queries, bank, spec)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_adversaries(name: str, rank: Any, way: str) -> None:
    queries, bank = adversary(name)
    spec = RetrievalSpec(k=17, rank=rank, distance="l2")
    assert_same(run(queries, bank, spec, **WAYS[way]), queries, bank, spec)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    ("n", "m", "d", "genes", "k"),
    [
        (0, 50, 8, 3, 5),
        (1, 50, 1, 1, 5),
        (5, 1, 3, 2, 1),
        (3, 40, 7, 4, 1),
        (3, 40, 33, 130, 39),
        (3, 40, 33, 5, 40),
        (2, 33, 255, 6, 20),
        (2, 33, 257, 6, 20),
        (130, 131, 5, 3, 9),
        (66, 300, 16, 129, 64),
    ],
)
def test_odd_shapes(rank: Any, n: int, m: int, d: int, genes: int, k: int) -> None:
    queries, bank = clustered(n, m, d, genes)
    spec = RetrievalSpec(k=k, rank=rank)
    for how in (WAYS["all keys, gathered"], WAYS["keys within a limit, dense"]):
        sample = min(how["sample"], m)
        assert_same(run(queries, bank, spec, **(how | {"sample": sample})), queries, bank, spec)


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[F32, Bank, RetrievalSpec, dict[str, Any]]:
    """Few whole numbers in few columns: ties, duplicates, zero rows and zero distances in nearly every case."""
    m, n, d = draw(st.integers(1, 70)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread, scale = draw(st.integers(0, 3)), 2.0 ** draw(st.integers(-60, 60))
    points = (rng.integers(-spread, spread + 1, size=(n + m, d)) * scale).astype(np.float32)
    spec = RetrievalSpec(
        k=draw(st.integers(1, m)),
        rank=draw(st.sampled_from(RANKS)),
        distance=draw(st.sampled_from(DISTANCES)),
        weighting=draw(st.sampled_from(WEIGHTINGS)),
        temperature=draw(st.floats(1e-3, 1e3)),
    )
    how = draw(st.sampled_from(list(WAYS.values())))
    bank = Bank(points[n:], rng.normal(size=(m, draw(st.integers(1, 6)))).astype(np.float32))
    return points[:n], bank, spec, how | {"sample": min(m, how["sample"])}


@settings(deadline=None, max_examples=40)
@given(small_cases())
def test_ties_go_to_the_lower_row(case: tuple[F32, Bank, RetrievalSpec, dict[str, Any]]) -> None:
    queries, bank, spec, how = case
    assert_same(run(queries, bank, spec, **how), queries, bank, spec)
