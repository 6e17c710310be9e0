"""Roofline of a retrieval: its least operations and bytes, divided by a machine's peaks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Peaks:
    """Operations per second of a float32 matrix product, bytes per second of a copy (read and write)."""

    flops_per_s: float
    bytes_per_s: float


def retrieval_work(n: int, m: int, d: int, k: int, genes: int) -> Work:
    """Least work of exact retrieval by full comparison, in float32.

    Parameters
    ----------
    n, m : int
        Queries and bank rows.
    d : int
        Embedding width.
    k, genes : int
        Neighbors per query and genes per row.

    Notes
    -----
    Operations: N·M products of D columns (2NMD), k distances of D columns (3NkD), k·G weighted sums (2NkG).
    Bytes: bank and queries read once, expression written once; no N×M matrix.
    """
    flops = 2.0 * n * m * d + 3.0 * n * k * d + 2.0 * n * k * genes
    return Work(flops=flops, bytes=4.0 * (m * (d + genes) + n * (d + genes)))


def bound_s(work: Work, peaks: Peaks) -> float:
    """Roofline in seconds: the slower of computing and moving at the machine's peaks."""
    return max(work.flops / peaks.flops_per_s, work.bytes / peaks.bytes_per_s)
