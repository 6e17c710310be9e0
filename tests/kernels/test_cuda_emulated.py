"""The CUDA kernels and their provider in the CPU emulation, against the float64 definition."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from host_driver import FORWARD, REVERSE, SHUFFLED, HostDriver, build, compiler, sanitizer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from retrieval_cases import ADVERSARIES, SPECS, WAYS, Bank, adversary, assert_same, clustered, spec_name

from mclst.kernels.cuda.job import Job, Placing, leaves
from mclst.kernels.cuda.provider import CudaProvider
from mclst.kernels.definition import reference
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import DISTANCES, NEIGHBOR_WEIGHTINGS, RANKS, RetrievalSpec, Weighting

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not installed, and the emulation needs it")
F32 = NDArray[np.float32]
SMALL = 8 << 20


def made(bank: Bank, spec: RetrievalSpec, order: int = FORWARD, **how: Any) -> CudaProvider:
    driver = HostDriver(order=order)
    return CudaProvider(
        bank.embedding, bank.expression, spec, driver=driver, **({"workspace_bytes": SMALL} | how)
    )


def run(queries: F32, bank: Bank, spec: RetrievalSpec, order: int = FORWARD, **how: Any) -> RetrievalResult:
    return made(bank, spec, order, **how).aggregate(queries, neighbors=True)


def array_of(cuda: CudaProvider, name: str, dtype: Any, *shape: int) -> NDArray[Any]:
    """Read an array of the workspace."""
    array = np.empty(shape, dtype=dtype)
    cuda._driver.download(array, cuda._memory[name])
    return array


# --- against the definition -----------------------------------------------------------------------


def test_host_and_kernels_lay_their_structures_out_alike() -> None:
    calls = HostDriver().calls
    for which, structure, field in ((0, Placing, Placing.rank), (1, Job, Job.half_expression)):
        assert calls.host_cuda_size(which) == ctypes.sizeof(structure)
        assert calls.host_cuda_offset(which) == field.offset


@pytest.mark.parametrize("spec", SPECS, ids=spec_name)
def test_every_spec(spec: RetrievalSpec) -> None:
    queries, bank = clustered(9, 150, 13)
    how = list(WAYS.values())[SPECS.index(spec) % len(WAYS)]
    assert_same(run(queries, bank, spec, **how), queries, bank, spec)


@pytest.mark.parametrize("way", ["all keys, gathered", "keys within a limit, dense"])
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
        (130, 200, 5, 3, 100),  # more keys within the limit than a block's list has room for
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
    """Small integers in few columns: most cases have ties, duplicates, zero rows and zero distances."""
    m, n, d = draw(st.integers(1, 70)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
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
    how = draw(st.sampled_from(list(WAYS.values())))
    bank = Bank(points[n:], rng.normal(size=(m, draw(st.integers(1, 6)))).astype(np.float32))
    return points[:n], bank, spec, how | {"sample": min(m, how["sample"])}


@settings(deadline=None, max_examples=40)
@given(small_cases())
def test_ties_go_to_the_lower_row(case: tuple[F32, Bank, RetrievalSpec, dict[str, Any]]) -> None:
    queries, bank, spec, how = case
    assert_same(run(queries, bank, spec, **how), queries, bank, spec)


# --- the proof ------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [*range(1, 40), 127, 128, 129, 255, 257, 1000, 1536, 2055, 4095, 4096])
def test_runs_are_those_in_which_numpy_adds(d: int) -> None:
    numbers = np.random.default_rng(d).normal(size=d) * 10.0 ** np.random.default_rng(d).integers(-9, 9, d)
    waiting: list[float] = []
    for start, length, joins in leaves(d):
        run, even = numbers[start : start + length], length // 8 * 8
        total = 0.0
        if even:
            lanes = run[:8].copy()
            for i in range(8, even, 8):
                lanes += run[i : i + 8]
            a, b, c, e, f, g, h, i = lanes
            total = ((a + b) + (c + e)) + ((f + g) + (h + i))
        for number in run[even:]:
            total += number
        for _ in range(joins):
            total = waiting.pop() + total
        waiting.append(total)
        assert len(waiting) <= 8
    assert waiting == [numbers.sum()]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("d", [3, 21, 130, 300])
def test_scores_and_distances_are_the_references_to_the_bit(rank: Any, d: int) -> None:
    """Every row of a bank of equal rows is undecided, so the keys leave all of them to float64."""
    queries, bank = clustered(3, 40, d)
    bank.embedding[:] = bank.embedding[0] + np.float32(2.0**-20) * np.arange(40, dtype=np.float32)[:, None]
    spec = RetrievalSpec(k=20, rank=rank, distance=("l2", "l1", "cosine")[d % 3])
    cuda = made(bank, spec, sample=40)
    cuda._job.limit = cuda._sample_job.limit = cuda._memory["limit"]
    # Without room for keys every query goes to choose_exactly.
    cuda._job.capacity = 0
    cuda._job.k, cuda._job.filter = 20, 1
    lane = cuda._pipeline._lanes[0]
    cuda._driver.upload(lane.memory["query"], queries)
    job = type(cuda._job).from_buffer_copy(cuda._job)
    job.n = 3
    cuda._run(lane, 3, lane.memory["query"])
    assert array_of(cuda, "exact_count", np.uint32, 1)[0] == 3
    scores = array_of(cuda, "exact_score", np.float64, 3, 40)
    for query, row in zip(queries, scores, strict=True):
        np.testing.assert_array_equal(row, reference.bank_scores(rank, query, bank.embedding))


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("d", [3, 256, 257])
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_distances_stay_within_the_bound_of_compensated_float32(distance: Any, d: int, scale: float) -> None:
    """Rows near the query cancel; squares of 1e-50 underflow, and are left to float64."""
    queries, bank = clustered(3, 40, d)
    bank.embedding[:20] = queries[0] * np.float32(1 + 2.0**-18)
    queries, bank.embedding = queries * np.float32(scale), bank.embedding * np.float32(scale)
    cuda = made(bank, RetrievalSpec(k=40, rank="l2", distance=distance))
    cuda.aggregate(queries)
    got = array_of(cuda, "score", np.float64, 3, 40)
    expected = reference.distances(distance, queries[:, None], bank.embedding[None])
    bound = (d + 64) ** 2 * 2.0**-53
    np.testing.assert_allclose(got, expected, rtol=bound + 2.0**-46, atol=0)
    if distance == "l2" and scale < 1:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("temperature", "equal"), [(1e-9, True), (100.0, False)])
@pytest.mark.parametrize("weighting", ["softmax", "softmax-squared"])
def test_softmax_that_multiplies_errors_has_distances_of_the_reference(
    weighting: Any, temperature: float, equal: bool
) -> None:
    queries, bank = clustered(3, 40, 300)
    spec = RetrievalSpec(k=40, rank="l2", distance="l2", weighting=weighting, temperature=temperature)
    cuda = made(bank, spec)
    assert_same(cuda.aggregate(queries, neighbors=True), queries, bank, spec)
    got = array_of(cuda, "score", np.float64, 3, 40)
    expected = reference.distances("l2", queries[:, None], bank.embedding[None])
    assert np.array_equal(got, expected) == equal


@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("rank", RANKS)
def test_keys_stay_within_the_bound(rank: Any, name: str) -> None:
    """|s - t| <= e for every row nearer than the reach, t from the unrounded points in long double."""
    queries, bank = adversary(name)
    cuda = made(bank, RetrievalSpec(k=9, rank=rank, distance="l2"), sample=0)
    cuda.aggregate(queries)
    near = array_of(cuda, "far", np.uint32, len(queries)) == 0
    keys = array_of(cuda, "key", np.float32, len(queries), len(bank.embedding)).astype(np.longdouble)
    if rank == "l1":
        exact = np.abs(queries[:, None].astype(np.longdouble) - bank.embedding.astype(np.longdouble)).sum(
            axis=-1
        )
        assert (np.abs(keys - exact) <= cuda._job.rounding * exact).all()
        return
    x, p = (points(cuda, rank, vectors) for vectors in (queries[near], bank.embedding))
    keys, exact = keys[near], (p**2).sum(axis=-1) - 2 * x @ p.T
    long_x, long_p = (np.sqrt((v**2).sum(axis=-1)) for v in (x, p))
    long_x, job = long_x[:, None], cuda._job
    bound = job.rounding * long_p * (long_p + 2 * long_x) + job.floor * (1 + long_x + long_p)
    bound = bound + job.moved * (2 * (long_x + long_p) + job.moved) + job.gap
    assert (np.abs(keys - exact) <= bound).all()


def points(cuda: CudaProvider, rank: str, vectors: F32) -> Any:
    """Points in long double, by the definition in retrieve.cu."""
    wide = vectors.astype(np.longdouble)
    zero = ~wide.any(axis=1)
    if rank == "cosine":
        # Scaled first, as long double is no wider than double on some machines.
        wide = wide / np.where(zero, 1, np.abs(wide).max(axis=1))[:, None]
        wide = wide / np.where(zero, 1, np.sqrt((wide**2).sum(axis=1)))[:, None]
    if cuda._bank.columns > vectors.shape[1]:
        wide = np.column_stack([wide, zero])
    center = np.empty(cuda._bank.columns)
    cuda._driver.download(center, cuda._placing.centre)
    return (wide - center) * np.longdouble(cuda._placing.size)


def test_float32_keys_alone_would_choose_wrongly() -> None:
    """The undecided rows decide: taking the smallest keys gives other rows than the reference's."""
    queries, bank = adversary("near ties")
    spec = RetrievalSpec(k=17, rank="l2", distance="l2")
    cuda = made(bank, spec, sample=0)
    got = cuda.aggregate(queries, neighbors=True)
    keys = array_of(cuda, "key", np.float32, len(queries), len(bank.embedding))
    plain = np.sort(np.argsort(keys, axis=1, kind="stable")[:, :17], axis=1)
    assert got.neighbors is not None and (plain != np.sort(got.neighbors, axis=1)).any()


def test_the_limit_spares_most_keys_and_few_queries_go_the_long_way() -> None:
    queries, bank = clustered(40, 1500, 16)
    spec = RetrievalSpec(k=20, rank="l2")
    cuda = made(bank, spec, sample=300)
    assert_same(cuda.aggregate(queries, neighbors=True), queries, bank, spec)
    kept = array_of(cuda, "count", np.uint32, 40)
    assert (kept >= 20).all() and kept.mean() < 150
    assert array_of(cuda, "exact_count", np.uint32, 1)[0] == 0


@pytest.mark.parametrize("rank", RANKS)
def test_more_equal_rows_than_there_is_room_for(rank: Any) -> None:
    queries, bank = clustered(6, 500, 8)
    bank.embedding[100:450] = bank.embedding[100]
    queries[:3] = bank.embedding[100] + np.float32(0.01)
    spec = RetrievalSpec(k=30, rank=rank)
    cuda = made(bank, spec, sample=100)
    assert cuda.plan.capacity < 350
    assert_same(cuda.aggregate(queries, neighbors=True), queries, bank, spec)
    assert array_of(cuda, "exact_count", np.uint32, 1)[0] >= 3


# --- what must not change the answer --------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rank", RANKS)
def test_the_order_of_threads_and_blocks_changes_no_bit(rank: Any, way: str) -> None:
    queries, bank = clustered(9, 150, 12)
    spec = RetrievalSpec(k=25, rank=rank)
    first = run(queries, bank, spec, **WAYS[way])
    parts = made(bank, spec, SHUFFLED, **WAYS[way])
    others = [
        run(queries, bank, spec, REVERSE, **WAYS[way]),
        run(queries, bank, spec, SHUFFLED, workspace_bytes=90_000, **WAYS[way]),
        joined([parts.aggregate(queries[:1], neighbors=True), parts.aggregate(queries[1:], neighbors=True)]),
    ]
    for other in others:
        for field in ("expression", "nearest", "effective_k", "neighbors"):
            np.testing.assert_array_equal(getattr(other, field), getattr(first, field))


def joined(parts: list[RetrievalResult]) -> RetrievalResult:
    return RetrievalResult(
        *(
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("expression", "nearest", "effective_k", "neighbors")
        )
    )


def test_half_the_expression_is_its_rounding() -> None:
    queries, bank = clustered(9, 150, 12, genes=7)
    spec = RetrievalSpec(k=25, rank="l2")
    rounded = Bank(bank.embedding, bank.expression.astype(np.float16).astype(np.float32))
    for way in WAYS.values():
        assert_same(run(queries, bank, spec, half_expression=True, **way), queries, rounded, spec)
    bank.expression[3, 3] = 7e4
    with pytest.raises(ValueError, match="exceeds 65504"):
        made(bank, spec, half_expression=True)


def test_the_dense_mean_is_as_near_as_it_says() -> None:
    """Equal weights and values, the worst case of truncating tensor cores: far below the proven 4e-6."""
    queries, bank = clustered(5, 700, 6, genes=3)
    bank.expression[:] = 1 - 2.0**-20 * np.random.default_rng(1).random((700, 3))
    for weighting in cast("tuple[Weighting, ...]", NEIGHBOR_WEIGHTINGS):
        spec = RetrievalSpec(k=600, rank="l2", weighting=weighting, temperature=20.0)
        assert_same(run(queries, bank, spec, dense_from=0), queries, bank, spec, tolerance=4e-7)


# --- memory ---------------------------------------------------------------------------------------


def test_nothing_is_allocated_after_the_start_and_everything_is_given_back() -> None:
    queries, bank = clustered(9, 150, 12)
    driver = HostDriver()
    cuda = CudaProvider(
        bank.embedding, bank.expression, RetrievalSpec(k=5), driver=driver, workspace_bytes=SMALL
    )
    cuda.aggregate(queries)  # page-locked memory for results, which is used again
    allocated = set(driver.allocated)
    for n in (9, 2, 9):
        cuda.aggregate(queries[:n])
    assert driver.allocated == allocated
    cuda.release()
    assert not driver.allocated


def test_under_the_sanitizers(tmp_path: Path) -> None:
    """Run every kernel under AddressSanitizer and UndefinedBehaviorSanitizer, in a new process."""
    runtime = sanitizer()
    if runtime is None:
        pytest.skip("g++ has no AddressSanitizer here")
    script = tmp_path / "sanitized.py"
    script.write_text(
        """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from retrieval_cases import assert_same, clustered
from host_driver import SANITIZED, HostDriver, build
from mclst.kernels import RetrievalSpec
from mclst.kernels.cuda.provider import CudaProvider
if len(sys.argv) > 2:
    driver = HostDriver(build(SANITIZED))
    driver.upload(driver.allocate(40), np.zeros(11, dtype=np.float32))
launched = set()
for rank, distance, m, k, how in [
    ("cosine", "cosine", 70, 9, {"sample": 35, "dense_from": 2}),
    ("l2", "l1", 131, 9, {"sample": 0, "dense_from": 0}),
    ("l1", "l2", 70, 9, {"sample": 33, "dense_from": 0}),
    ("l2", "l2", 33, 33, {"sample": 0, "dense_from": 2}),
]:
    queries, bank = clustered(5, m, 17, genes=5)
    bank.embedding[10:30] = bank.embedding[10]
    driver = HostDriver(build(SANITIZED))
    spec = RetrievalSpec(k=k, rank=rank, distance=distance)
    cuda = CudaProvider(bank.embedding, bank.expression, spec, driver=driver, workspace_bytes=60_000, **how)
    assert_same(cuda.aggregate(queries, neighbors=True), queries, bank, spec)
    cuda.release()
    launched |= set(driver.launched)
print(len(launched), "kernels")
"""
    )
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0"}
    tests = str(Path(__file__).parents[1] / "support")
    command = [sys.executable, str(script), tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "11 kernels\n"
    planted = subprocess.run(
        [*command, "overrun"], env=environment, capture_output=True, text=True, check=False
    )
    assert planted.returncode != 0 and "heap-buffer-overflow" in planted.stderr


# Barriers and waits are left out one by one in test_cuda_barriers.py.
FAULTS = {
    "a barrier that some never reach": (
        "device.cuh",
        "        tally.high[threadIdx.x / 32] = high;\n    }\n    __syncthreads();",
        "        tally.high[threadIdx.x / 32] = high;\n    }\n    if (threadIdx.x < 64) __syncthreads();",
    ),
    "rows of the bank swapped": (
        "product.cuh",
        "fragments_b(bank_low[c], stage.bank, warp_column + 16 * c, true, lane)",
        "fragments_b(bank_low[c], stage.bank, warp_column + 16 * (c ^ 1), true, lane)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulation_notices_a_planted_fault(fault: str, tmp_path: Path) -> None:
    name, old, new = FAULTS[fault]
    root = Path(__file__).resolve().parents[2]
    for folder in ("tests/support/host_cuda", "kernels/cuda/src"):
        shutil.copytree(root / folder, tmp_path / folder)
    source = tmp_path / "kernels" / "cuda" / "src" / name
    text = source.read_text()
    assert text.count(old) == 1
    source.write_text(text.replace(old, new))
    library = build(("-O1",), tmp_path)
    queries, bank = adversary("tight cluster far out")
    spec = RetrievalSpec(k=17, rank="l2", distance="l2")
    with pytest.raises(AssertionError):
        for order in (FORWARD, REVERSE):
            driver = HostDriver(library, order)
            cuda = CudaProvider(
                bank.embedding, bank.expression, spec, driver=driver, sample=0, workspace_bytes=SMALL
            )
            assert_same(cuda.aggregate(queries, neighbors=True), queries, bank, spec)
            keys = array_of(cuda, "key", np.float32, len(queries), len(bank.embedding)).astype(np.float64)
            x, p = (points(cuda, "l2", vectors).astype(np.float64) for vectors in (queries, bank.embedding))
            exact = (p**2).sum(axis=-1) - 2 * x @ p.T
            assert np.abs(keys - exact).max() <= cuda._job.rounding * 4 * (p**2).sum(axis=-1).max()
