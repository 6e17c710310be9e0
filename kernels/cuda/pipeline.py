"""Blocks of queries through a device, whose copies overlap the kernels of other blocks.

Three streams, ordered by events: copies up, kernels, copies down. Of buffers there are two lanes, so a
block waits for the one before the last. All host memory is page-locked, so no copy makes the host wait.

    host     │ fill 0 │ fill 1 │ wait 0, fill 2 │ …
    up       │        │ copy 0 │ copy 1 │ copy 2 │ …
    kernels  │                 │ block 0 │ block 1 │ …
    down     │                           │ copy 0 │ copy 1 │ …
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.driver import Driver, Event, Memory, Stream
from mclst.kernels.cuda.pinned import PinnedPool
from mclst.kernels.definition.contract import BadQuery, ProviderError
from mclst.kernels.definition.result import RetrievalResult

NO_ROW = 0xFFFFFFFF


def _physical_bytes() -> int:
    """Memory of this machine; 32 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 32 << 30


STAGED_BYTES = min(4 << 30, _physical_bytes() // 8)
"""Larger results are not page-locked as a whole; their blocks are, and the host copies them.

A million queries of 785 genes have 2.9 GiB.
"""
_LANES = 2


@dataclass
class Lane:
    """Buffers of one block under way.

    memory: on the device, "query", "out", "nearest", "effective_k" and "bad". host: float32 [queries, D].
    """

    memory: Memory
    host: NDArray[np.float32]
    uploaded: Event
    computed: Event
    downloaded: Event


@dataclass
class _Block:
    """A block under way: where its results go, and what is copied there once they are on the host."""

    lane: Lane
    start: int
    result: RetrievalResult
    parts: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=list)
    rows: NDArray[np.uint32] | None = None
    bad: NDArray[np.uint32] | None = None


Compute = Callable[[Lane, int, int], None]
Finish = Callable[[slice, NDArray[np.uint32]], None]


class Pipeline:
    """The streams and lanes of a provider.

    compute_stream: where kernels are launched.
    """

    def __init__(self, driver: Driver, *, queries: int, columns: int, genes: int) -> None:
        """queries: most per block. Raises ProviderError without memory."""
        self._driver, self._genes = driver, genes
        self._pool = PinnedPool(driver)
        self._lanes: list[Lane] = []
        self._streams: list[Stream] = []
        try:
            self.compute_stream = self._stream(blocking=True)
            self._up, self._down = self._stream(), self._stream()
            self._no_row = self._pool.array((1,), np.uint32)
            self._no_row[:] = NO_ROW
            for _ in range(_LANES):
                self._add_lane(queries, columns, genes)
        except BaseException:
            self.release()
            raise

    def _stream(self, *, blocking: bool = False) -> Stream:
        self._streams.append(self._driver.create_stream(blocking=blocking))
        return self._streams[-1]

    def _add_lane(self, queries: int, columns: int, genes: int) -> None:
        host = self._pool.array((queries, columns), np.float32)
        memory = Memory(self._driver)
        events = (self._driver.create_event() for _ in range(3))
        self._lanes.append(Lane(memory, host, *events))
        for name, width in (("query", 4 * columns), ("out", 4 * genes), ("nearest", 4), ("effective_k", 4)):
            memory.reserve(name, queries * width)
        memory.reserve("bad", 4)

    def run(
        self,
        n: int,
        step: int,
        compute: Compute,
        *,
        queries: NDArray[np.float32] | None = None,
        neighbors: tuple[int, int, Finish] | None = None,
    ) -> RetrievalResult:
        """Retrieve for n queries in blocks of `step`.

        compute: (lane, start, count) launches the kernels of a block.
        queries: float32 [n, D] on the host; None where `compute` reads them on the device, which checks them.
        neighbors: the device address of rows uint32 [count, k], k, and what takes them.
        Raises BadQuery for the first row that is not finite, if they are checked.
        """
        result = self._empty(n)
        under_way: deque[_Block] = deque()
        try:
            for number, start in enumerate(range(0, n, step)):
                if len(under_way) == _LANES:
                    self._finish(under_way.popleft(), neighbors)
                block = _Block(self._lanes[number % _LANES], start, result)
                count = min(step, n - start)
                self._begin(block, count, compute, queries, neighbors, after=under_way)
                under_way.append(block)
            while under_way:
                self._finish(under_way.popleft(), neighbors)
        except BaseException:
            self._settle()
            raise
        return result

    def release(self) -> None:
        """End everything; results stay valid."""
        self._settle()
        for lane in self._lanes:
            lane.memory.release()
            for event in (lane.uploaded, lane.computed, lane.downloaded):
                self._driver.destroy_event(event)
        self._lanes.clear()
        self.__dict__.pop("_no_row", None)
        while self._streams:
            self._driver.destroy_stream(self._streams.pop())
        self._pool.release()

    def _is_staged(self, n: int) -> bool:
        return 4 * n * self._genes > STAGED_BYTES

    def _empty(self, n: int) -> RetrievalResult:
        if self._is_staged(n):
            return RetrievalResult.empty(n, self._genes)
        return RetrievalResult(
            self._pool.array((n, self._genes), np.float32),
            self._pool.array((n,), np.float32),
            self._pool.array((n,), np.float32),
        )

    def _begin(
        self,
        block: _Block,
        count: int,
        compute: Compute,
        queries: NDArray[np.float32] | None,
        neighbors: tuple[int, int, Finish] | None,
        *,
        after: deque[_Block],
    ) -> None:
        driver, lane, start = self._driver, block.lane, block.start
        if queries is None:
            driver.copy_to_device(lane.memory["bad"], self._no_row, self.compute_stream)
        else:
            host = lane.host[:count]
            host[:] = queries[start : start + count]
            driver.copy_to_device(lane.memory["query"], host, self._up)
            driver.record(lane.uploaded, self._up)
            driver.stream_wait(self.compute_stream, lane.uploaded)
        if neighbors is not None and after:
            # Both blocks' rows are in the same memory.
            driver.stream_wait(self.compute_stream, after[-1].lane.downloaded)
        compute(lane, start, count)
        driver.record(lane.computed, self.compute_stream)
        driver.stream_wait(self._down, lane.computed)
        for name, whole in (
            ("out", block.result.expression),
            ("nearest", block.result.nearest),
            ("effective_k", block.result.effective_k),
        ):
            part = whole[start : start + count]
            if self._is_staged(len(block.result)):
                staged = self._pool.array(part.shape, np.float32)
                block.parts.append((part, staged))
                part = staged
            driver.copy_to_host(part, lane.memory[name], self._down)
        if neighbors is not None:
            block.rows = self._pool.array((count, neighbors[1]), np.uint32)
            driver.copy_to_host(block.rows, neighbors[0], self._down)
        if queries is None:
            block.bad = self._pool.array((1,), np.uint32)
            driver.copy_to_host(block.bad, lane.memory["bad"], self._down)
        driver.record(lane.downloaded, self._down)

    def _finish(self, block: _Block, neighbors: tuple[int, int, Finish] | None) -> None:
        """Wait for a block, and take what is not in its place yet."""
        self._driver.synchronize(block.lane.downloaded)
        if block.bad is not None and block.bad[0] != NO_ROW:
            raise BadQuery(block.start + int(block.bad[0]))
        for to, staged in block.parts:
            to[:] = staged
        if neighbors is not None and block.rows is not None:
            neighbors[2](slice(block.start, block.start + len(block.rows)), block.rows)

    def _settle(self) -> None:
        """Wait for all copies, so that no memory is written after it went to others."""
        for stream in self._streams:
            # A device that fails has no work left, and its error is on its way.
            with suppress(ProviderError):
                self._driver.wait(self._driver.handle(stream))
