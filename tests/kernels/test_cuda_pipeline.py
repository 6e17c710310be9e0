"""Copies and kernels of retrieval on a played device: what overlaps, in which order, and what a fault leaves.

The device is tests/support/fake_cuda.py: its streams run late, in any order that events allow; its kernels
are those of the CPU emulation.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeDriver
from host_driver import HostDriver, compiler
from numpy.typing import NDArray
from retrieval_cases import Bank, assert_same, clustered

from mclst.kernels.cuda import pinned, pipeline
from mclst.kernels.cuda import provider as cuda_provider
from mclst.kernels.cuda.cuda_bindings import CudaBindings
from mclst.kernels.cuda.provider import CudaProvider
from mclst.kernels.definition.contract import BadQuery, ProviderError
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not installed, and the emulation needs it")
SPEC = RetrievalSpec(k=11, rank="l2")
N, STEP = 11, 4
UP, KERNELS, DOWN = "up", "kernels", "down"
Open = Callable[..., tuple[CudaProvider, FakeDriver]]


@pytest.fixture(scope="module")
def data() -> tuple[NDArray[np.float32], Bank]:
    return clustered(N, 64, 5, genes=4)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, data: tuple[NDArray[np.float32], Bank]) -> Open:
    """A provider over a played device that works off blocks of STEP queries."""
    monkeypatch.setattr(cuda_provider, "_FULL_BLOCK", STEP)
    monkeypatch.setattr("mclst.kernels.cuda.driver.cubin", lambda architecture, cached=True: b"code")

    def open_provider(seed: int = 0, ahead: tuple[str, ...] = ()) -> tuple[CudaProvider, FakeDriver]:
        fake = FakeDriver(seed)
        fake.kernels = HostDriver()
        package = ModuleType("cuda.bindings")
        package.driver = fake  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda.bindings", package)
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
        bank = data[1]
        cuda = CudaProvider(
            bank.embedding, bank.expression, SPEC, driver=CudaBindings(0), workspace_bytes=1 << 18
        )
        cuda.plan = cuda.plan.__class__(**{**vars(cuda.plan), "queries": STEP})
        lines = cuda._pipeline
        fake.names = {lines._up: UP, lines.compute_stream: KERNELS, lines._down: DOWN}
        fake.ahead = ahead
        fake.trace.clear()
        fake.called.clear()
        return cuda, fake

    return open_provider


class OnDevice:
    def __init__(self, array: NDArray[np.float32]) -> None:
        self.array = array
        self.__cuda_array_interface__ = dict(array.__array_interface__) | {"version": 3, "stream": None}


def check(result: RetrievalResult, data: tuple[NDArray[np.float32], Bank]) -> None:
    assert_same(result, *data, SPEC)


@pytest.mark.parametrize("ahead", [(), (UP, KERNELS), (KERNELS, UP), (DOWN, KERNELS)])
def test_results_are_right_whichever_stream_is_ahead(
    opened: Open, data: tuple[NDArray[np.float32], Bank], ahead: tuple[str, ...]
) -> None:
    cuda, fake = opened(3, ahead)
    check(cuda.aggregate(data[0], neighbors=True), data)
    expected = cuda.aggregate(data[0])
    from_device = cuda.aggregate_from(OnDevice(data[0].copy()))
    for name in ("expression", "nearest", "effective_k"):
        np.testing.assert_array_equal(getattr(from_device, name), getattr(expected, name))
    cuda.release()
    del expected, from_device
    gc.collect()
    assert not fake.memory and not fake.streams and not fake.events and fake.depth == 0


def test_copies_of_one_block_overlap_the_kernels_of_another(
    opened: Open, data: tuple[NDArray[np.float32], Bank]
) -> None:
    """Whatever may be ahead gets ahead: nothing but its own events holds a stream up."""
    cuda, fake = opened(ahead=(UP,))
    cuda.aggregate(data[0])
    # The second block was on the device before the first kernel of the first one.
    assert fake.trace.index((UP, "copy"), 1) < fake.trace.index((KERNELS, "place"))
    cuda, fake = opened(ahead=(UP, KERNELS))
    cuda.aggregate(data[0])
    # All kernels of the second block were done before the first result came down.
    places = [i for i, entry in enumerate(fake.trace) if entry == (KERNELS, "place")]
    assert places[1] < fake.trace.index((DOWN, "copy"))


def test_no_copy_is_pageable_or_makes_the_host_wait(
    opened: Open, data: tuple[NDArray[np.float32], Bank]
) -> None:
    cuda, fake = opened()
    cuda.aggregate(data[0], neighbors=True)
    cuda.aggregate_from(OnDevice(data[0]))
    assert "cuMemcpyHtoD" not in fake.called and "cuMemcpyDtoH" not in fake.called
    assert "cuMemcpyHtoDAsync" in fake.called and "cuMemcpyDtoHAsync" in fake.called
    assert not fake.pageable
    # The host waits once per block, for its results.
    assert fake.called.count("cuEventSynchronize") == 2 * -(-N // STEP)
    assert "cuCtxSynchronize" not in fake.called and "cuStreamSynchronize" not in fake.called


@pytest.mark.parametrize("dropped", range(8))
def test_every_wait_between_streams_is_needed(
    opened: Open, data: tuple[NDArray[np.float32], Bank], dropped: int
) -> None:
    """Without any one of the waits (as if it had been forgotten), some order gives wrong results."""
    wrong = 0
    for ahead in ((KERNELS, DOWN), (DOWN, UP, KERNELS), (UP, KERNELS)):
        cuda, fake = opened(ahead=ahead)
        fake.drop_wait = dropped
        try:
            check(cuda.aggregate(data[0], neighbors=True), data)
        except (AssertionError, IndexError):
            wrong += 1
        fake.drop_wait = -1
        cuda.release()
    assert wrong


def test_a_fault_at_any_step_ends_cleanly(opened: Open, data: tuple[NDArray[np.float32], Bank]) -> None:
    cuda, fake = opened()
    cuda.aggregate(data[0], neighbors=True)
    calls = [name for name in fake.called if not name.startswith("cuCtx")]
    cuda.release()
    failed = set()
    # Each kind of call, the first and the last time.
    indices = {calls.index(name) for name in calls} | {
        len(calls) - 1 - calls[::-1].index(name) for name in calls
    }
    for index in sorted(indices):
        cuda, fake = opened(seed=index)
        fake.fail_after = index
        with pytest.raises(ProviderError, match=f"CUDA_ERROR_LAUNCH_FAILED to {calls[index]}"):
            cuda.aggregate(data[0], neighbors=True)
        failed.add(calls[index])
        # The host does not go on while copies are under way: their memory is given to others.
        assert not any(stream.work for stream in fake.streams.values())
        if index % 3 == 0:
            check(cuda.aggregate(data[0], neighbors=True), data)
        cuda.release()
        gc.collect()
        assert not fake.memory and not fake.streams and not fake.events and fake.depth == 0
    assert {"cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuLaunchKernel", "cuEventRecord"} <= failed
    assert {"cuStreamWaitEvent", "cuEventSynchronize", "cuMemHostAlloc"} <= failed


def test_results_stay_what_they_are_and_their_memory_is_used_again(
    opened: Open, data: tuple[NDArray[np.float32], Bank]
) -> None:
    cuda, fake = opened()
    queries = data[0]
    first = cuda.aggregate(queries)
    kept = first.expression.copy()
    part = first.expression[3:5]
    second = cuda.aggregate(-queries)
    np.testing.assert_array_equal(first.expression, kept)
    assert not np.array_equal(second.expression, kept)
    del first
    cuda.aggregate(-queries)
    np.testing.assert_array_equal(part, kept[3:5])  # a view keeps the memory
    del second, part
    before = len(fake.memory)
    for _ in range(5):
        cuda.aggregate(queries)
    assert len(fake.memory) == before
    last = cuda.aggregate(queries)
    cuda.release()
    np.testing.assert_array_equal(last.expression, kept)
    del last
    assert not fake.memory


def test_few_large_blocks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [pinned.block_bytes(n) for n in (0, 5000, 1 << 28, (1 << 28) + 1)] == [
        4096,
        8192,
        1 << 28,
        1 << 29,
    ]
    driver = HostDriver()
    pool = pinned.PinnedPool(driver)
    for most, kept in ((1 << 13, 1), (3 << 13, 3)):
        monkeypatch.setattr(pinned, "KEPT_BYTES", most)
        arrays = [pool.array((8192,), np.uint8) for _ in range(5)]
        assert len(driver.allocated) == 5
        del arrays
        assert len(driver.allocated) == kept
    pool.release()
    assert not driver.allocated


def test_large_results_come_through_page_locked_blocks(
    opened: Open, data: tuple[NDArray[np.float32], Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "STAGED_BYTES", 0)
    cuda, fake = opened()
    result = cuda.aggregate(data[0], neighbors=True)
    check(result, data)
    assert result.expression.base is None and not fake.pageable


@pytest.mark.parametrize("row", [0, 7, 10])
def test_the_first_query_that_is_no_number_is_named_in_any_block(
    opened: Open, data: tuple[NDArray[np.float32], Bank], row: int
) -> None:
    cuda, _ = opened(ahead=(UP, KERNELS))
    queries = data[0].copy()
    queries[row:, 3] = np.inf
    with pytest.raises(BadQuery, match=f"row {row} of the embeddings"):
        cuda.aggregate_from(OnDevice(queries))
    check(cuda.aggregate(data[0], neighbors=True), data)


def test_a_provider_that_does_not_open_leaves_nothing(opened: Open, data: Any) -> None:
    cuda, fake = opened()
    cuda.release()
    bank = data[1]
    bad = Bank(bank.embedding, bank.expression * np.float32(1e6))
    with pytest.raises(ValueError, match="65504"):
        CudaProvider(
            bad.embedding,
            bad.expression,
            SPEC,
            driver=cuda._driver,
            workspace_bytes=1 << 18,
            half_expression=True,
        )
    gc.collect()
    assert not fake.memory and not fake.streams and not fake.events


def test_a_device_that_fails_while_it_is_opened_leaves_nothing(opened: Open, data: Any) -> None:
    def make(cuda: CudaProvider) -> CudaProvider:
        bank = data[1]
        return CudaProvider(
            bank.embedding, bank.expression, SPEC, driver=cuda._driver, workspace_bytes=1 << 18
        )

    cuda, fake = opened()
    cuda.release()
    fake.called.clear()
    make(cuda).release()
    calls = [name for name in fake.called if not name.startswith("cuCtx")]
    # Calls that give something back are not failed here.
    opening = calls[: calls.index("cuMemFree")]
    allocating = [i for i, name in enumerate(opening) if name in ("cuMemAlloc", "cuMemHostAlloc")]
    others = [opening.index(name) for name in dict.fromkeys(opening)]
    for index in sorted({*others, *allocating[::5], allocating[-1]}):
        fake.fail_after = index
        with pytest.raises(ProviderError, match=f"to {opening[index]}"):
            make(cuda)
        fake.fail_after = -1
        gc.collect()
        assert not fake.memory and not fake.streams and not fake.events, opening[index]
