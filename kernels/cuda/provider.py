"""The `cuda` provider: retrieve.cu on a device, block by block of queries, in a workspace of fixed size.

Its kernels are compiled for every architecture and tested under an emulation on the CPU. They have not yet run on a
device, so `Retriever`'s "auto" does not choose it; `make gpu-check` is the test that will tell.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.device_array import DeviceArray, device_array
from mclst.kernels.cuda.device_bank import (
    BLOCK,
    MOST_COLUMNS,
    PLACED_PER_BLOCK,
    DeviceBank,
    padded_columns,
)
from mclst.kernels.cuda.driver import Driver, Memory, open_driver
from mclst.kernels.cuda.job import Job, Placing, copy_of
from mclst.kernels.cuda.plan import DENSE_FROM, WORKSPACE_BYTES, Plan, make_plan
from mclst.kernels.definition.contract import LARGEST, BadQuery, ProviderError
from mclst.kernels.definition.reference import rank_scores
from mclst.kernels.definition.result import RetrievalResult
from mclst.kernels.definition.spec import RetrievalSpec

_TILE, _SQUARE = 128, 64
_GATHER_BLOCK, _GATHER_QUERIES, _GATHER_GENES = 128, 4, 128
_DENSE_QUERIES, _DENSE_GENES = 64, 128
_NO_ROW = 0xFFFFFFFF
_ORDER_BYTES = 64 << 20


class Cuda:
    """A bank on a device, made ready for queries.

    embedding: float32 [M, D], D up to 4096. expression: float32 [M, G]. Both checked (`Retriever` does).
    driver: the device; the first one by default.
    workspace_bytes: device memory for queries in flight, beside the bank's; taken once, here.
    half_expression: hold the expression as float16: half the traffic, values rounded to 11 bits.
    dense_from: of k/M, from which the mean is a dense product on tensor cores, off by up to 4e-6·max|expression| at
        worst and by less than 1e-6 in practice; below it, gathered sums are within 1e-6·max|expression|.
    sample: rows sampled for the keys' limit; by default of the plan's choosing. It changes speed alone.

    The chosen rows are the reference's, to the last tie; retrieve.cu has the proof.
    Raises ProviderError where there is no device, compiler, or memory; ValueError where the bank does not fit.
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
        if embedding.shape[1] > MOST_COLUMNS:
            raise ValueError(
                f"the bank's embedding has {embedding.shape[1]} columns and provider 'cuda' takes up to {MOST_COLUMNS}; "
                "choose another provider"
            )
        self._driver = open_driver() if driver is None else driver
        self._driver.load()
        # One column more, for the axis of zero rows.
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
        self._spec, self._embedding = spec, embedding
        self._bank = DeviceBank(
            self._driver, embedding, expression, spec, self.plan, half_expression=half_expression
        )
        self._memory = Memory(self._driver)
        self._job, self._sample_job, self._placing = self._reserve()
        self._release = weakref.finalize(self, _give_back, self._memory, self._bank)

    def aggregate(self, queries: NDArray[np.float32], *, neighbours: bool = False) -> RetrievalResult:
        """Retrieve for checked `queries` float32 [N, D] in host memory."""
        n, genes, k = len(queries), self._job.genes, self._spec.k
        whole = RetrievalResult(
            np.empty((n, genes), np.float32),
            np.empty(n, np.float32),
            np.empty(n, np.float32),
            np.empty((n, k), np.int64) if neighbours else None,
        )
        for start in range(0, n, self.plan.queries):
            block = slice(start, min(n, start + self.plan.queries))
            self._driver.upload(self._memory["query"], queries[block])
            self._run(block.stop - start, {})
            self._bring(whole, block)
            if whole.neighbours is not None:
                rows = np.empty((block.stop - start, k), dtype=np.uint32)
                self._driver.download(rows, self._memory["near_row"])
                whole.neighbours[block] = self._by_rank(queries[block], rows.astype(np.int64))
        return whole

    def aggregate_into(
        self, queries: Any, expression: Any, nearest: Any | None = None, effective_k: Any | None = None
    ) -> None:
        """Retrieve for queries that lie on the device, into arrays that lie there; nothing is copied.

        queries: float32 [N, D]. expression: float32 [N, G], written. nearest, effective_k: float32 [N], written; None
        leaves them out. Each gives `__cuda_array_interface__` or DLPack and is in C order.
        Runs on the default stream, after the streams the arrays name, and returns when done.
        Raises ValueError where a shape does not fit, or where a query holds NaN, infinity or a value beyond 1e30; the
        written arrays are then of no use.
        """
        source = device_array("the embeddings", queries)
        rows = source.shape[0] if len(source.shape) == 2 else 0
        _expect("the embeddings", source, (rows, self._job.d))
        written = {
            "out": _taken("expression", expression, (rows, self._job.genes)),
            "nearest": _taken("nearest", nearest, (rows,)),
            "effective_k": _taken("effective_k", effective_k, (rows,)),
        }
        for array in (source, *written.values()):
            if array is not None and array.stream not in (None, 0, 1):
                self._driver.wait(array.stream)
        self._driver.upload(self._memory["bad"], np.array([_NO_ROW], dtype=np.uint32))
        for start in range(0, rows, self.plan.queries):
            count = min(self.plan.queries, rows - start)
            places = {"query": source.pointer + 4 * start * self._job.d}
            for name, array in written.items():
                if array is not None:
                    width = self._job.genes if name == "out" else 1
                    places[name] = array.pointer + 4 * start * width
            self._run(count, places)
            self._refuse_bad(start)

    def aggregate_from(self, queries: Any) -> RetrievalResult:
        """Retrieve for queries float32 [N, D] that lie on the device; what is found comes to the host.

        Raises as `aggregate_into` does; of a query that is no number, BadQuery.
        """
        source = device_array("the embeddings", queries)
        n = source.shape[0] if len(source.shape) == 2 else 0
        _expect("the embeddings", source, (n, self._job.d))
        if source.stream not in (None, 0, 1):
            self._driver.wait(source.stream)
        found = RetrievalResult(
            np.empty((n, self._job.genes), np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
        )
        self._driver.upload(self._memory["bad"], np.array([_NO_ROW], dtype=np.uint32))
        for start in range(0, n, self.plan.queries):
            block = slice(start, min(n, start + self.plan.queries))
            self._run(block.stop - start, {"query": source.pointer + 4 * start * self._job.d})
            self._refuse_bad(start)
            self._bring(found, block)
        return found

    def release(self) -> None:
        """Give the device's memory back; this object is of no use afterwards."""
        self._release()

    def _reserve(self) -> tuple[Job, Job, Placing]:
        """The workspace, and what points to it."""
        bank, plan, memory = self._bank, self.plan, self._memory
        n, rows = plan.queries, len(self._embedding)
        each = {
            "query": 4 * bank.job.d,
            "query_high": 2 * bank.padded,
            "query_low": 2 * bank.padded,
            "query_scale": 4,
            "query_square": 4,
            "query_norm": 4,
            "apart": 4,
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
            "expression": 4 * bank.job.genes,
            "nearest": 4,
            "effective_k": 4,
        }
        for name, width in each.items():
            memory.reserve(name, n * width)
        memory.reserve("exact_score", 8 * plan.slots * rows)
        memory.reserve("exact_count", 4)
        memory.put("bad", np.array([_NO_ROW], dtype=np.uint32))
        own = {name: memory[name] for name, _ in Job._fields_ if memory[name] and name != "expression"}
        own["out"] = memory["expression"]
        placing = Placing.from_buffer_copy(bank.placing)
        placing.largest = LARGEST
        for name in ("high", "low", "scale", "square", "norm"):
            setattr(placing, name, memory[f"query_{name}"])
        placing.apart, placing.bad = memory["apart"], memory["bad"]
        placing.exact_count = memory["exact_count"]
        return copy_of(bank.job, **own), copy_of(bank.sample_job, **own), placing

    def _run(self, n: int, places: dict[str, int]) -> None:
        """All stages for a block of n queries, at the addresses `places` where these differ from the workspace's."""
        placing = Placing.from_buffer_copy(self._placing)
        placing.n, placing.source = n, places.get("query", self._memory["query"])
        self._launch("place", (_parts(n, PLACED_PER_BLOCK), 1), placing)
        job = copy_of(self._job, n=n, **places)
        wide = 8 * job.d
        if self._spec.k < len(self._embedding):
            if self.plan.sample:
                self._keys("all", copy_of(self._sample_job, n=n, **places))
                self._launch("set_limit", (n, 1), copy_of(self._sample_job, n=n, **places))
                self._keys("within", job)
            else:
                self._keys("all", job)
            self._launch("choose", (n, 1), job, shared=wide)
            self._launch("choose_exactly", (min(n, self.plan.slots), 1), job, shared=wide)
        self._launch("weigh", (n, 1), job, shared=wide)
        if self.plan.dense:
            self._launch("multiply_dense", (_parts(job.genes, _DENSE_GENES), _parts(n, _DENSE_QUERIES)), job)
        else:
            grid = (_parts(n, _GATHER_QUERIES), _parts(job.genes, _GATHER_GENES))
            self._launch("gather", grid, job, block=_GATHER_BLOCK)

    def _bring(self, whole: RetrievalResult, block: slice) -> None:
        """Results of a block from the workspace to the host."""
        for name in ("expression", "nearest", "effective_k"):
            self._driver.download(getattr(whole, name)[block], self._memory[name])

    def _keys(self, which: str, job: Job) -> None:
        kernel, tile = ("city_block", _SQUARE) if self._spec.rank == "l1" else ("product", _TILE)
        self._launch(f"{kernel}_{which}", (_parts(job.key_rows, tile), _parts(job.n, tile)), job)

    def _launch(
        self,
        kernel: str,
        grid: tuple[int, int],
        passed: Job | Placing,
        *,
        block: int = BLOCK,
        shared: int = 0,
    ) -> None:
        self._driver.launch(kernel, grid, block, shared, passed)

    def _refuse_bad(self, start: int) -> None:
        bad = np.empty(1, dtype=np.uint32)
        self._driver.download(bad, self._memory["bad"])
        if bad[0] != _NO_ROW:
            raise BadQuery(start + int(bad[0]))

    def _by_rank(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ascending `rows` [n, k] ordered by rank score and then by row."""
        ordered = np.empty_like(rows)
        step = max(1, _ORDER_BYTES // (40 * rows.shape[1] * queries.shape[1]))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            scores = rank_scores(self._spec.rank, queries[some, None], self._embedding[rows[some]])
            ordered[some] = np.take_along_axis(rows[some], np.argsort(scores, axis=1, kind="stable"), axis=1)
        return ordered


def _parts(count: int, size: int) -> int:
    return -(-count // size)


def _taken(name: str, array: Any | None, shape: tuple[int, ...]) -> DeviceArray | None:
    if array is None:
        return None
    found = device_array(name, array)
    _expect(name, found, shape)
    return found


def _expect(name: str, array: DeviceArray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} on the device has shape {list(array.shape)}; give {list(shape)}")


def _give_back(memory: Memory, bank: DeviceBank) -> None:
    try:
        memory.release()
        bank.release()
    except ProviderError:
        # A device that failed has already said so, and its memory ends with the process.
        return
