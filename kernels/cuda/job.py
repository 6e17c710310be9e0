"""Kernel arguments: `Placing` and `Job` of job.cuh, field for field, and the tables they point to.

Pointers are device addresses. A test compares the layouts with the compiler's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

_P, _D, _L, _I = ctypes.c_uint64, ctypes.c_double, ctypes.c_int64, ctypes.c_int32


def _fields(*groups: tuple[Any, str]) -> list[tuple[str, Any]]:
    return [(name, kind) for kind, names in groups for name in names.split()]


class Placing(ctypes.Structure):
    """Arguments of `place`: vectors to points."""

    _fields_ = _fields(
        (_P, "source centre parts scale square norm far bad exact_count"),
        (_D, "size largest"),
        (_I, "n d columns padded rank unused"),
    )


class Job(ctypes.Structure):
    """Arguments of all other kernels: queries to expression."""

    _fields_ = _fields(
        (_P, "query bank square_sum leaf query_parts query_scale query_norm far"),
        (_P, "bank_parts bank_scale bank_square key row band count limit score chosen"),
        (_P, "exact_list exact_count exact_score near_row weight share"),
        (_P, "expression gene_parts gene_scale out nearest effective_k"),
        (_D, "rounding floor widest moved gap temperature"),
        (_L, "bank_rows key_rows key_stride capacity"),
        (_I, "n d padded k genes gene_stride words leaves rank distance weighting"),
        (_I, "sample_rank filter half_expression unused"),
    )


def copy_of(job: Job, **changes: int) -> Job:
    """A copy of `job` with some fields changed."""
    copied = Job.from_buffer_copy(job)
    for name, value in changes.items():
        setattr(copied, name, value)
    return copied


def leaves(columns: int) -> NDArray[np.int32]:
    """numpy's pairwise summation order of `columns` numbers, as int32 [leaves, 3].

    Each run has its start, its length, and how often to add the last two partial sums after it. Up to 128
    numbers are one run; more are halved, the first half rounded down to a multiple of 8.
    """
    runs: list[list[int]] = []

    def split(start: int, length: int) -> None:
        if length <= 128:
            runs.append([start, length, 0])
            return
        half = length // 2 - length // 2 % 8
        split(start, half)
        split(start + half, length - half)
        runs[-1][2] += 1

    split(0, columns)
    return np.array(runs, dtype=np.int32)
