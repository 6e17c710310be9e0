"""The compiler's own PTX of the CUDA kernels, executed on the CPU, against the float64 definition.

Half of the cases run, each for one target; with PTX_CASES=all in the environment, all run for every target.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
from host_driver import FORWARD, REVERSE, SHUFFLED
from numpy.typing import NDArray
from ptx.build import PtxDriver, available, library_of, ptx_of
from retrieval_cases import (
    ADVERSARIES,
    SPECS,
    WAYS,
    Bank,
    adversary,
    assert_same,
    clustered,
    spec_name,
)  # fmt: skip

from mclst.kernels.cuda.provider import CudaProvider
from mclst.kernels.definition.spec import RANKS, Rank, RetrievalSpec

pytestmark = pytest.mark.skipif(
    not available(), reason="executing PTX needs g++, and nvcc or NVRTC; one of them is not installed"
)
TARGETS = (75, 80, 90)
EVERYWHERE = os.environ.get("PTX_CASES") == "all"
F32 = NDArray[np.float32]
Case = tuple[F32, Bank, RetrievalSpec]


def case_of(spec: RetrievalSpec, made: Callable[..., tuple[F32, Bank]], *arguments: Any) -> Case:
    return (*made(*arguments), spec)


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    for spec in SPECS:
        yield spec_name(spec), partial(case_of, spec, clustered, 9, 150, 13)
    for name, rank in itertools.product(ADVERSARIES, cast("tuple[Rank, ...]", RANKS)):
        spec = RetrievalSpec(k=17, rank=rank, distance="l2")
        yield f"{name}-{rank}", partial(case_of, spec, adversary, name)


CASES = dict(cases())


def check(text: str, number: int, case: Case) -> None:
    """Compare one case with the definition, in the way and order of threads that its number gives."""
    queries, bank, spec = case
    driver = PtxDriver(text, (FORWARD, REVERSE, SHUFFLED)[number % 3], watched=True)
    how = list(WAYS.values())[(number + number // 3) % len(WAYS)]
    cuda = CudaProvider(bank.embedding, bank.expression, spec, driver=driver, workspace_bytes=8 << 20, **how)
    assert_same(cuda.aggregate(queries, neighbors=True), queries, bank, spec)
    cuda.release()
    assert driver.conflicts() == []


@pytest.mark.parametrize("target", TARGETS)
def test_every_case_is_right_and_without_races(target: int) -> None:
    text = ptx_of(target)
    for number, make in enumerate(CASES.values()):
        if EVERYWHERE or number % (2 * len(TARGETS)) == 2 * TARGETS.index(target):
            check(text, number, make())


def test_tiles_beyond_one_block() -> None:
    """More than one tile of everything, with edges; more keys within the limit than a list has room for."""
    queries, bank = clustered(130, 180, 12, genes=130)
    check(ptx_of(80), 2, (queries, bank, RetrievalSpec(k=90, rank="l2", distance="l1")))


# --- planted faults -------------------------------------------------------------------------------


def swap_operands(text: str) -> str:
    """Rows g + 8 of A in the place of columns 2t + 8."""
    mma = r"(mma\.sync\S+\s*\{[^}]*\},\s*\{[^,]*),([^,]*),([^,]*),([^}]*\})"
    return re.sub(mma, r"\1,\3,\2,\4", text)


def test_swapped_operands_are_caught() -> None:
    wrong = swap_operands(ptx_of(80))
    assert wrong != ptx_of(80)
    with pytest.raises(AssertionError):
        check(wrong, 4, CASES["small whole numbers-l2"]())


def test_a_wait_one_group_too_lax_is_caught() -> None:
    driver = PtxDriver(ptx_of(80))
    driver.calls.ptx_plant(b"", 0, 1)
    try:
        with pytest.raises(AssertionError):
            check(ptx_of(80), 4, CASES["small whole numbers-l2"]())
    finally:
        driver.calls.ptx_plant(b"", 0, 0)


# --- the executor itself --------------------------------------------------------------------------


def run(body: str, arrays: list[NDArray[Any]], threads: int = 32, *, blocks: int = 1) -> PtxDriver:
    """Run a kernel whose registers %rd1, %rd2, … hold the addresses of `arrays`, which it may change."""
    parameters = ", ".join(f".param .u64 small_param_{i}" for i in range(len(arrays)))
    loads = " ".join(f"ld.param.u64 %rd{i + 1}, [small_param_0+{8 * i}];" for i in range(len(arrays)))
    driver = PtxDriver(
        f".visible .entry small({parameters}) {{ .reg .pred %p<4>; .reg .b32 %r<40>; .reg .b64 %rd<20>; "
        f".reg .f32 %f<20>; .shared .align 16 .b8 kept[1024]; mov.u32 %r0, %tid.x; {loads} {body} ret; }}",
        watched=True,
    )
    addresses = [driver.allocate(array.nbytes) for array in arrays]
    for address, array in zip(addresses, arrays, strict=True):
        driver.upload(address, array)

    class Parameters(ctypes.Structure):
        _fields_ = [("addresses", ctypes.c_uint64 * len(arrays))]

    driver.launch("small", (blocks, 1), threads, 0, Parameters((ctypes.c_uint64 * len(arrays))(*addresses)))
    for address, array in zip(addresses, arrays, strict=True):
        driver.download(array, address)
        driver.free(address)
    return driver


def places(shape: tuple[int, ...], stride: tuple[int, ...]) -> NDArray[np.int64]:
    """All values of a layout (shape, stride), the first mode fastest."""
    index = np.indices(shape[::-1]).reshape(len(shape), -1)
    return np.asarray(sum(stride[::-1][mode] * index[mode] for mode in range(len(shape))))


# Where each lane's values lie, by CuTe's MMA_Traits of SM80_16x8x8 and SM80_16x8x16 (NVIDIA CUTLASS,
# include/cute/atom/mma_traits_sm80.hpp): the lane is the modes 4 and 8, a place is row + rows · column.
FRAGMENTS = {
    16: {
        "a": ((4, 8, 2, 2, 2), (32, 1, 16, 8, 128)),
        "b": ((4, 8, 2, 2), (16, 1, 8, 64)),
        "c": ((4, 8, 2, 2), (32, 1, 16, 8)),
    },
    8: {
        "a": ((4, 8, 2, 2), (32, 1, 16, 8)),
        "b": ((4, 8, 2), (16, 1, 8)),
        "c": ((4, 8, 2, 2), (32, 1, 16, 8)),
    },
}


@pytest.mark.parametrize("depth", FRAGMENTS)
def test_fragments_lie_where_cutlass_says(depth: int) -> None:
    rng = np.random.default_rng(depth)
    a, b, c = (rng.integers(-8, 9, size=shape) for shape in ((16, depth), (8, depth), (16, 8)))
    # [lane, value]: modes 4 and 8 are the lane.
    at = {name: places(*layout).reshape(-1, 32).T for name, layout in FRAGMENTS[depth].items()}
    halves = [
        np.ascontiguousarray(matrix.T.ravel()[at[name]], dtype=np.float16).view(np.uint32)
        for name, matrix in (("a", a), ("b", b))
    ]
    sums = np.ascontiguousarray(c.T.ravel()[at["c"]], dtype=np.float32)
    words_a, words_b = (half.shape[1] for half in halves)
    loads = "".join(
        f"mul.wide.u32 %rd10, %r0, {4 * count}; add.s64 %rd10, %rd10, %rd{array}; "
        + " ".join(f"ld.global.{kind} %{name}{first + i}, [%rd10+{4 * i}];" for i in range(count))
        for array, count, kind, name, first in (
            (1, words_a, "u32", "r", 1),
            (2, words_b, "u32", "r", 11),
            (3, 4, "f32", "f", 0),
        )
    )
    listed = [
        ", ".join(f"%{name}{first + i}" for i in range(count))
        for name, first, count in (("f", 0, 4), ("r", 1, words_a), ("r", 11, words_b))
    ]
    b_operand = f"{{{listed[2]}}}"
    run(
        f"{loads} mma.sync.aligned.m16n8k{depth}.row.col.f32.f16.f16.f32 "
        f"{{{listed[0]}}}, {{{listed[1]}}}, {b_operand}, {{{listed[0]}}}; "
        + " ".join(f"st.global.f32 [%rd10+{4 * i}], %f{i};" for i in range(4)),
        [*halves, sums],
    )
    product = np.empty(16 * 8, dtype=np.float32)
    product[at["c"]] = sums
    np.testing.assert_array_equal(product.reshape(8, 16).T, a @ b.T + c)


STORE = "shl.b32 %r1, %r0, 2; mov.u32 %r2, kept; add.s32 %r2, %r2, %r1; st.shared.u32 [%r2], %r0;"
NEXT = (
    "add.s32 %r3, %r0, 1; and.b32 %r3, %r3, 63; shl.b32 %r3, %r3, 2; mov.u32 %r4, kept; "
    "add.s32 %r4, %r4, %r3; ld.shared.u32 %r5, [%r4]; "
    "cvt.u64.u32 %rd2, %r1; add.s64 %rd2, %rd1, %rd2; st.global.u32 [%rd2], %r5;"
)
BY_FIRST = "setp.eq.s32 %p1, %r0, 0; @%p1 bra $first; bra.uni $on; $first:"
COPY = "mov.u32 %r2, kept; cp.async.cg.shared.global [%r2], [%rd1], 16; cp.async.commit_group;"
FROM_COPY = "bar.sync 0; ld.shared.u32 %r3, [kept];"
READ_BY_BLOCK_0 = "mov.u32 %r1, %ctaid.x; setp.eq.s32 %p1, %r1, 0; @%p1 ld.global.u32 %r2, [%rd1];"
WRITTEN_BY_BLOCK_1 = (
    "setp.eq.s32 %p2, %r0, 0; not.pred %p1, %p1; and.pred %p1, %p1, %p2; @%p1 st.global.u32 [%rd1], %r0;"
)
SHADOWED = {
    "a neighbor's word after a barrier": (f"{STORE} bar.sync 0; {NEXT}", ""),
    "a neighbor's word without one": (f"{STORE} {NEXT}", "read after write in shared"),
    "a word of all, atomically": ("atom.global.add.u32 %r1, [%rd1], 1;", ""),
    "a word of all": ("st.global.u32 [%rd1], %r0;", "write after write in global"),
    "a word of two blocks": (f"{READ_BY_BLOCK_0} {WRITTEN_BY_BLOCK_1}", "in different blocks"),
    "a copy that is waited for": (f"{BY_FIRST} {COPY} cp.async.wait_group 0; $on: {FROM_COPY}", ""),
    "a copy under way": (f"{BY_FIRST} {COPY} $on: {FROM_COPY} cp.async.wait_group 0;", "a copy under way"),
}


@pytest.mark.parametrize("name", SHADOWED)
def test_the_race_shadow_sees_what_no_barrier_orders(name: str) -> None:
    body, expected = SHADOWED[name]
    conflicts = run(body, [np.zeros(64, dtype=np.uint32)], 64, blocks=2 if "block" in name else 1).conflicts()
    assert [conflict for conflict in conflicts if expected in conflict] if expected else conflicts == []


def test_an_access_outside_of_an_allocation_is_refused() -> None:
    numbers = np.zeros(4, dtype=np.uint32)
    run("st.global.u32 [%rd1+12], %r0;", [numbers], 1)
    with pytest.raises(AssertionError, match="outside of what was allocated"):
        run("st.global.u32 [%rd1+16], %r0;", [numbers], 1)
    with pytest.raises(AssertionError, match="not aligned"):
        run("st.global.v2.u32 [%rd1+4], {%r0, %r0};", [numbers], 1)


def test_warps_are_counted_by_their_busiest_lane() -> None:
    """Thread t goes t % 4 times around: a warp of 32 goes three times."""
    driver = run(
        "and.b32 %r1, %r0, 3; $again: setp.eq.s32 %p1, %r1, 0; @%p1 bra $out; "
        "popc.b32 %r2, %r1; sub.s32 %r1, %r1, 1; bra.uni $again; $out:",
        [np.zeros(1, dtype=np.uint32)],
        64,
    )
    executed = driver.executed()["small"]
    assert executed["popc.b32"] == 2 * 3 and executed["setp.eq.s32"] == 2 * 4


def test_targets_of_one_instruction_set_share_a_library() -> None:
    assert library_of(ptx_of(80)) == library_of(ptx_of(90)) != library_of(ptx_of(75))
