"""The `cuda` provider: runs retrieve.cu on blocks of queries, in a workspace of fixed size."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.device_array import device_array
from mclst.kernels.cuda.device_bank import (
    BLOCK,
    DENSE_GENES,
    MAX_COLUMNS,
    PLACED_PER_BLOCK,
    DeviceBank,
    padded_columns,
    parts_bytes,
)
from mclst.kernels.cuda.devices import open_driver
from mclst.kernels.cuda.driver import Driver, Memory
from mclst.kernels.cuda.job import Job, Placing, copy_of
from mclst.kernels.cuda.pipeline import Lane, Pipeline
from mclst.kernels.cuda.plan import DENSE_FROM, WORKSPACE_BYTES, Plan, bank_bytes, make_plan
from mclst.kernels.definition.contract import MAX_MAGNITUDE, ProviderError
from mclst.kernels.definition.reference import rank_scores
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec

_TILE, _SQUARE = 128, 64
_GATHER_BLOCK, _GATHER_QUERIES, _GATHER_GENES = 128, 4, 128
_DENSE_QUERIES = 64
_ORDER_BYTES = 64 << 20
# A call is cut into blocks whose copies and kernels overlap, unless these would not fill the device.
_BLOCKS, _FULL_BLOCK = 4, 1024


class CudaProvider:
    """A bank on a device, prepared for queries.

    embedding: float32 [M, D], D up to 4096. expression: float32 [M, G]. Both already checked.
    driver: the device; default the first one.
    workspace_bytes: device memory for a block of queries, allocated once, in addition to the bank's.
    half_expression: store expression as float16: half the memory traffic, values rounded to 11 bits.
    dense_from: k/M from which the mean is a dense product on tensor cores, with an error of at most
        4e-6·max|expression|, below 1e-6 in practice; gathered sums below it are within 1e-6·max|expression|.
    sample: rows sampled for the key limit; default chosen by the plan. Affects only speed.

    Selects exactly the reference's rows, ties included; retrieve.cu has the proof.
    Raises ProviderError without a device, compiler or memory; ValueError if D is too large.
    """

    def __init__(
        self,
        embedding: NDArray[np.float32],
        expression: NDArray[np.float32],
        spec: RetrievalSpec,
        *,
        driver: Driver | None = None,
        workspace_bytes: int = WORKSPACE_BYTES,
        half_expression: bool = False,
        dense_from: float = DENSE_FROM,
        sample: int | None = None,
    ) -> None:
        if embedding.shape[1] > MAX_COLUMNS:
            raise ValueError(
                f"the bank's embedding has {embedding.shape[1]} columns and provider 'cuda' takes up to "
                f"{MAX_COLUMNS}; choose another provider"
            )
        self._driver = open_driver() if driver is None else driver
        self._driver.load()
        # One extra column, for the axis of zero rows.
        padded = padded_columns(embedding.shape[1] + 1)
        self.plan: Plan = make_plan(
            len(embedding),
            padded,
            spec.k,
            expression.shape[1],
            multiprocessors=self._driver.multiprocessors,
            workspace_bytes=workspace_bytes,
            dense_from=dense_from,
            sample=sample,
        )
        self._check_room(embedding, expression, spec, padded, workspace_bytes, half_expression)
        self._spec, self._embedding = spec, embedding
        driver, genes = self._driver, expression.shape[1]
        self._pipeline = Pipeline(driver, queries=self.plan.queries, columns=embedding.shape[1], genes=genes)
        self._stream = self._pipeline.compute_stream
        self._memory = Memory(driver)
        parts: list[Pipeline | Memory | DeviceBank] = [self._pipeline, self._memory]
        try:
            self._bank = DeviceBank(
                driver, embedding, expression, spec, self.plan, self._stream, half_expression=half_expression
            )
            parts.append(self._bank)
            self._job, self._sample_job, self._placing = self._reserve()
        except BaseException:
            _free(*parts)
            raise
        self._release = weakref.finalize(self, _free, *parts)

    def aggregate(self, queries: NDArray[np.float32], *, neighbors: bool = False) -> RetrievalResult:
        """Retrieve for checked `queries` float32 [N, D] in host memory."""
        n, k = len(queries), self._spec.k
        step = self._block(n)
        if not neighbors:
            return self._pipeline.run(n, step, self._run_lane, queries=queries)
        chosen = np.empty((n, k), np.int64)

        def take(block: slice, rows: NDArray[np.uint32]) -> None:
            chosen[block] = self._by_rank(queries[block], rows.astype(np.int64))

        take_rows = (self._memory["near_row"], k, take)
        result = self._pipeline.run(n, step, self._run_lane, queries=queries, neighbors=take_rows)
        return replace(result, neighbors=chosen)

    def aggregate_from(self, queries: Any) -> RetrievalResult:
        """Retrieve for queries float32 [N, D] on the device; the result is on the host.

        queries: C-ordered, with `__cuda_array_interface__` or DLPack; waits for pending work on its stream.
        Raises ValueError for other shapes or dtypes, BadQuery for NaN, infinity or a value beyond 1e30.
        """
        source = device_array("the embeddings", queries, self._driver.handle(self._stream))
        n, d = source.shape[0] if len(source.shape) == 2 else 0, self._job.d
        if source.shape != (n, d):
            raise ValueError(f"the embeddings on the device have shape {list(source.shape)}; give {[n, d]}")
        if source.stream not in (None, 0):
            self._driver.wait(source.stream)

        def compute(lane: Lane, start: int, count: int) -> None:
            self._run(lane, count, source.pointer + 4 * start * d)

        return self._pipeline.run(n, self._block(n), compute)

    def release(self) -> None:
        """Free the device memory; the provider cannot be used afterwards."""
        self._release()

    def _check_room(
        self,
        embedding: NDArray[np.float32],
        expression: NDArray[np.float32],
        spec: RetrievalSpec,
        padded: int,
        workspace_bytes: int,
        half: bool,
    ) -> None:
        """Raise ProviderError if bank and workspace do not fit, before anything is copied."""
        rows, d = embedding.shape
        points = spec.rank != "l1" and spec.k < rows
        genes = expression.shape[1]
        needed = workspace_bytes + bank_bytes(
            rows, d, padded, genes, points=points, dense=self.plan.dense, half=half
        )
        free = self._driver.free_bytes()
        if needed > free:
            raise ProviderError(
                f"the bank of {rows:,} rows and its workspace need {needed / 2**30:.1f} GiB of the CUDA "
                f"device, which has {free / 2**30:.1f} GiB free; split the bank (mclst.kernels.shards), stop "
                "other programs on the device, or choose provider 'cpu'"
            )

    def _reserve(self) -> tuple[Job, Job, Placing]:
        """Allocate the workspace; return the job, sample job and placing that point to it."""
        bank, plan, memory = self._bank, self.plan, self._memory
        n, rows = plan.queries, len(self._embedding)
        bytes_per_query = {
            "query_scale": 4,
            "query_square": 4,
            "query_norm": 4,
            "far": 4,
            "key": 4 * plan.key_stride,
            "row": 4 * plan.capacity if plan.sample else 0,
            "band": 4 * plan.capacity,
            "count": 4,
            "limit": 4,
            "score": 8 * plan.capacity,
            "chosen": 4 * bank.job.words,
            "exact_list": 4,
            "near_row": 4 * self._spec.k,
            "weight": 4 * self._spec.k,
            "share": 4,
        }
        for name, width in bytes_per_query.items():
            memory.reserve(name, n * width)
        memory.reserve("query_parts", parts_bytes(n, bank.padded))
        memory.reserve("exact_score", 8 * plan.slots * rows)
        memory.reserve("exact_count", 4)
        addresses = {name: memory[name] for name, _ in Job._fields_ if memory[name]}
        placing = Placing.from_buffer_copy(bank.placing)
        placing.largest = MAX_MAGNITUDE
        for name in ("parts", "scale", "square", "norm"):
            setattr(placing, name, memory[f"query_{name}"])
        placing.far = memory["far"]
        placing.exact_count = memory["exact_count"]
        return copy_of(bank.job, **addresses), copy_of(bank.sample_job, **addresses), placing

    def _block(self, n: int) -> int:
        """Queries per block of a call for n."""
        return min(self.plan.queries, max(_FULL_BLOCK, _parts(n, _BLOCKS)))

    def _run_lane(self, lane: Lane, start: int, count: int) -> None:
        """Launch all stages for the queries in a lane."""
        self._run(lane, count, lane.memory["query"])

    def _run(self, lane: Lane, n: int, query: int) -> None:
        """Launch all stages for n queries at device address `query`; results go to the lane's memory."""
        placing = Placing.from_buffer_copy(self._placing)
        placing.n, placing.source, placing.bad = n, query, lane.memory["bad"]
        self._launch("place", (_parts(n, PLACED_PER_BLOCK), 1), placing)
        results = {name: lane.memory[name] for name in ("out", "nearest", "effective_k")}
        job = copy_of(self._job, n=n, query=query, **results)
        query_bytes = 8 * job.d
        if self._spec.k < len(self._embedding):
            if self.plan.sample:
                sample_job = copy_of(self._sample_job, n=n, query=query)
                self._keys("all", sample_job)
                self._launch("set_limit", (n, 1), sample_job)
                self._keys("within", job)
            else:
                self._keys("all", job)
            self._launch("choose", (n, 1), job, shared=query_bytes)
            self._launch("choose_exactly", (min(n, self.plan.slots), 1), job, shared=query_bytes)
        self._launch("weigh", (n, 1), job, shared=query_bytes)
        if self.plan.dense:
            self._launch("multiply_dense", (_parts(job.genes, DENSE_GENES), _parts(n, _DENSE_QUERIES)), job)
        else:
            grid = (_parts(n, _GATHER_QUERIES), _parts(job.genes, _GATHER_GENES))
            self._launch("gather", grid, job, block=_GATHER_BLOCK)

    def _keys(self, which: str, job: Job) -> None:
        kernel, tile = ("city_block", _SQUARE) if self._spec.rank == "l1" else ("product", _TILE)
        self._launch(f"{kernel}_{which}", (_parts(job.key_rows, tile), _parts(job.n, tile)), job)

    def _launch(
        self,
        kernel: str,
        grid: tuple[int, int],
        argument: Job | Placing,
        *,
        block: int = BLOCK,
        shared: int = 0,
    ) -> None:
        self._driver.launch(kernel, grid, block, shared, argument, self._stream)

    def _by_rank(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ascending `rows` [n, k] ordered by rank score and then by row."""
        ordered = np.empty_like(rows)
        step = max(1, _ORDER_BYTES // (40 * rows.shape[1] * queries.shape[1]))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            scores = rank_scores(self._spec.rank, queries[block, None], self._embedding[rows[block]])
            ordered[block] = np.take_along_axis(
                rows[block], np.argsort(scores, axis=1, kind="stable"), axis=1
            )
        return ordered


def _parts(count: int, size: int) -> int:
    return -(-count // size)


def _free(*parts: Pipeline | Memory | DeviceBank) -> None:
    try:
        for part in parts:
            part.release()
    except ProviderError:
        # The device failed, which was reported before; its memory ends with the process.
        return
