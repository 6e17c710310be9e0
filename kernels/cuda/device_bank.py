"""A bank on a device: points of the bank and of the sample, data for exact scores, and the expression."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.cuda.driver import Driver, Memory, Stream
from mclst.kernels.cuda.job import Job, Placing, leaves
from mclst.kernels.cuda.plan import Plan
from mclst.kernels.definition.contract import ProviderError
from mclst.kernels.definition.reference import SAME_DIRECTION, directions
from mclst.kernels.definition.spec import DISTANCES, NEIGHBOR_WEIGHTINGS, RANKS, RetrievalSpec

_BLOCK_BYTES = 64 << 20
_ROUND = 2.0**-24
_FLOOR = 2.0**-90
_COSINE_SCORE_ERROR = 2.0**-46
# Limited by shared memory for one float64 query and by `WAITING` in score.cuh.
MAX_COLUMNS = 4096
# Vectors per block of `place`, a warp each.
PLACED_PER_BLOCK = 8
# Genes per block of `multiply_dense`.
DENSE_GENES = 128
BLOCK = 256


class DeviceBank:
    """The bank's part of a retrieval on the device of `driver`.

    job: a `Job` with all fields that do not depend on the queries. sample_job: the same, with the sample in
    place of the bank for keys. placing: a `Placing` with all fields that do not depend on the vectors.
    """

    def __init__(
        self,
        driver: Driver,
        embedding: NDArray[np.float32],
        expression: NDArray[np.float32],
        spec: RetrievalSpec,
        plan: Plan,
        stream: Stream,
        *,
        half_expression: bool,
    ) -> None:
        """stream: where kernels are launched; its work comes after uploads, and before downloads."""
        self._driver, self._memory, self._stream = driver, Memory(driver), stream
        self._embedding, self._spec, self._plan = embedding, spec, plan
        self._zero_axis = spec.rank == "cosine" and not embedding.any(axis=1).all()
        self.columns = embedding.shape[1] + self._zero_axis
        self.padded = padded_columns(self.columns)
        try:
            self.placing = self._make_placing()
            self.job = self._make_job(expression.shape[1])
            self.sample_job = self.job
            self._put_bank()
            if spec.rank != "l1" and spec.k < len(embedding):
                self._put_points()
            if plan.sample:
                self._put_sample()
            self._put_expression(expression, half_expression)
        except BaseException:
            with suppress(ProviderError):
                driver.wait(driver.handle(stream))
                self._memory.release()
            raise

    def release(self) -> None:
        """Free the device memory."""
        self._memory.release()

    def _make_placing(self) -> Placing:
        rank = self._spec.rank
        center, size = (np.zeros(self.columns), 1.0) if rank == "l1" else self._frame()
        self._memory.put("centre", center)
        placing = Placing(centre=self._memory["centre"], size=size, largest=np.inf, rank=RANKS.index(rank))
        placing.d, placing.columns, placing.padded = self._embedding.shape[1], self.columns, self.padded
        return placing

    def _frame(self) -> tuple[NDArray[np.float64], float]:
        """μ [columns] and σ of the proof in retrieve.cu, from the bank."""
        center = np.zeros(self.columns)
        for block in self._blocks():
            center += self._vectors(block).sum(axis=0)
        center /= len(self._embedding)
        size = max(float(np.abs(self._vectors(block) - center).max()) for block in self._blocks())
        return center, float(np.ldexp(1.0, -int(np.frexp(size)[1])))

    def _vectors(self, block: slice) -> NDArray[np.float64]:
        rows = self._embedding[block]
        if self._spec.rank != "cosine":
            return rows.astype(np.float64)
        units = directions(rows)
        return np.column_stack([units, ~rows.any(axis=1)]) if self._zero_axis else units

    def _blocks(self) -> Iterator[slice]:
        step = max(1, _BLOCK_BYTES // (32 * self.columns))
        return (slice(start, start + step) for start in range(0, len(self._embedding), step))

    def _make_job(self, genes: int) -> Job:
        spec, rows = self._spec, len(self._embedding)
        moved = 2 * SAME_DIRECTION * self.placing.size if spec.rank == "cosine" else 0.0
        terms = self._embedding.shape[1] + 8 if spec.rank == "l1" else 10 * self.padded + 64
        return Job(
            rounding=terms * _ROUND * 1.01,
            floor=self.columns * _FLOOR,
            moved=moved,
            gap=_COSINE_SCORE_ERROR * self.placing.size**2 if spec.rank == "cosine" else 0.0,
            temperature=spec.temperature,
            bank_rows=rows,
            key_rows=rows,
            key_stride=self._plan.key_stride,
            capacity=self._plan.capacity,
            d=self._embedding.shape[1],
            padded=self.padded,
            k=spec.k,
            genes=genes,
            words=-(-rows // 32),
            rank=RANKS.index(spec.rank),
            distance=DISTANCES.index(spec.distance),
            weighting=NEIGHBOR_WEIGHTINGS.index(spec.weighting),
            sample_rank=self._plan.sample_rank,
            filter=int(self._plan.sample > 0),
        )

    def _put_bank(self) -> None:
        memory, d = self._memory, self._embedding.shape[1]
        memory.put("bank", self._embedding)
        memory.put("leaf", leaves(d))
        self.job.bank, self.job.leaf, self.job.leaves = memory["bank"], memory["leaf"], len(leaves(d))
        if "cosine" in (self._spec.rank, self._spec.distance):
            blocks = (self._embedding[block].astype(np.float64) for block in self._blocks())
            memory.put("square_sum", np.concatenate([np.multiply(b, b).sum(axis=-1) for b in blocks]))
            self.job.square_sum = memory["square_sum"]

    def _put_points(self) -> None:
        """The bank's points, and an upper bound on their norm."""
        self._place("bank", self._memory["bank"], len(self._embedding))
        self._point_to("bank", self.job)
        square = np.empty(len(self._embedding), dtype=np.float32)
        self._driver.download(square, self._memory["bank_square"])
        self.job.widest = math.sqrt(float(square.max())) * (1 + 2.0**-20)

    def _put_sample(self) -> None:
        """A copy of random rows, the same ones for every run."""
        rows = np.random.default_rng(0).choice(len(self._embedding), self._plan.sample, replace=False)
        self._memory.put("sample", self._embedding[np.sort(rows)])
        self.sample_job = Job.from_buffer_copy(self.job)
        self.sample_job.bank, self.sample_job.key_rows = self._memory["sample"], self._plan.sample
        if self._spec.rank != "l1":
            self._place("sample", self._memory["sample"], self._plan.sample)
            self._point_to("sample", self.sample_job)

    def _place(self, name: str, source: int, rows: int) -> None:
        memory, placing = self._memory, Placing.from_buffer_copy(self.placing)
        placing.source, placing.n = source, rows
        for part, size in (
            ("parts", parts_bytes(rows, self.padded)),
            ("scale", 4 * rows),
            ("square", 4 * rows),
        ):
            memory.reserve(f"{name}_{part}", size)
            setattr(placing, part, memory[f"{name}_{part}"])
        self._driver.launch("place", (-(-rows // PLACED_PER_BLOCK), 1), BLOCK, 0, placing, self._stream)

    def _point_to(self, name: str, job: Job) -> None:
        for part in ("parts", "scale", "square"):
            setattr(job, f"bank_{part}", self._memory[f"{name}_{part}"])

    def _put_expression(self, expression: NDArray[np.float32], half: bool) -> None:
        if half:
            with np.errstate(over="ignore"):
                rounded = expression.astype(np.float16)
            if not np.isfinite(rounded).all():
                raise ValueError(
                    "the bank's expression exceeds 65504, the largest float16; keep it in float32"
                )
            expression = rounded.astype(np.float32)
        self.job.half_expression = int(half)
        if self._plan.dense:
            parts, scale = gene_parts(expression)
            self._memory.put("gene_parts", parts)
            self._memory.put("gene_scale", scale)
            self.job.gene_parts, self.job.gene_scale = self._memory["gene_parts"], self._memory["gene_scale"]
            return
        stride = -(-expression.shape[1] // 4) * 4
        padded = np.zeros((len(expression), stride), dtype=np.float16 if half else np.float32)
        padded[:, : expression.shape[1]] = expression
        self._memory.put("expression", padded)
        self.job.expression, self.job.gene_stride = self._memory["expression"], stride


def padded_columns(columns: int) -> int:
    """Columns of a point, padded for the tensor cores."""
    return -(-columns // 16) * 16


def parts_bytes(rows: int, padded: int) -> int:
    """Bytes of points, with room at the end for a block of 128 that reads past the last one."""
    return 4 * rows * padded + 128 * 64


def gene_parts(expression: NDArray[np.float32]) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Split expression [M, G] into two float16 parts, and a power of two [G] per gene.

    The parts of 32 rows lie together, as the kernel copies them: [⌈M / 32⌉, G, 2, 32], flat, with room at
    the end for a block that reads past the last gene. The scale brings a gene's maximum to 128 … 256, so the
    error is at most 2⁻²² of the value plus 2⁻³² of the maximum.
    """
    rows, genes = expression.shape
    words = -(-rows // 32)
    exponent = np.frexp(np.abs(expression).max(axis=0, initial=0).astype(np.float64))[1] - 8
    parts = np.zeros((words * genes + DENSE_GENES) * 64, dtype=np.float16)
    by_word = parts[: words * genes * 64].reshape(words, genes, 2, 32)
    step = max(1, _BLOCK_BYTES // (24 * 32 * genes))
    for first in range(0, words, step):
        block = expression[32 * first : 32 * (first + step)]
        scaled = np.zeros((-(-len(block) // 32) * 32, genes))
        scaled[: len(block)] = np.ldexp(block.astype(np.float64), -exponent)
        to, values = by_word[first : first + step], scaled.reshape(-1, 32, genes).transpose(0, 2, 1)
        to[:, :, 0] = values
        to[:, :, 1] = values - to[:, :, 0]
    return parts, np.ldexp(1.0, exponent).astype(np.float32)
