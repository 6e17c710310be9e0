"""What a retrieval has to compute and move at the least, and what this machine can: their quotient is the bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

_SIDE = 2048
_COPY_BYTES = 256 << 20
_TRIES = 5


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes of one retrieval."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Peaks:
    """float32 operations a second of a large matrix product, and bytes a second of a large copy (read and written)."""

    flops_per_s: float
    bytes_per_s: float


def retrieval_work(n: int, m: int, d: int, k: int, genes: int) -> Work:
    """The least that exact retrieval by a full comparison needs, in float32.

    Operations: N·M products of D columns (2NMD), k distances of D columns (3NkD), k·G weighted sums (2NkG).
    Bytes: bank and queries read once, expression written once; no N×M matrix.
    """
    flops = 2.0 * n * m * d + 3.0 * n * k * d + 2.0 * n * k * genes
    return Work(flops=flops, bytes=4.0 * (m * (d + genes) + n * (d + genes)))


def bound_s(work: Work, peaks: Peaks) -> float:
    """The roofline: seconds that the slower of computing and moving takes at the machine's peaks."""
    return max(work.flops / peaks.flops_per_s, work.bytes / peaks.bytes_per_s)


def host_peaks(threads: int) -> Peaks:
    """Measured here and now: the best of a few tries each."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, _SIDE, _SIDE), dtype=np.float32)
    out = np.empty_like(a)
    flops = 2 * _SIDE**3 / _best(lambda: np.matmul(a, b, out=out))
    source = np.ones(_COPY_BYTES // 4, dtype=np.float32)
    target = np.zeros_like(source)
    parts = [
        (s, t) for s, t in zip(np.array_split(source, threads), np.array_split(target, threads), strict=True)
    ]
    with ThreadPoolExecutor(threads) as pool:
        moved = (
            2 * _COPY_BYTES / _best(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))
        )
    return Peaks(flops, moved)


def cuda_peaks() -> Peaks:
    """The same of the CUDA device, by torch; float32 without TF32."""
    import torch

    a, b = torch.rand(2, 4 * _SIDE, 4 * _SIDE, device="cuda")
    out = torch.empty_like(a)
    source, target = torch.ones(2, _COPY_BYTES, device="cuda")

    def product() -> None:
        torch.matmul(a, b, out=out)
        torch.cuda.synchronize()

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return Peaks(2 * (4 * _SIDE) ** 3 / _best(product), 2 * 4 * _COPY_BYTES / _best(copy))


def _best(function: Callable[[], object]) -> float:
    function()
    taken = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return min(taken)
