"""Sizes of a retrieval on a device: keys per query, queries per block, and the kernel for the mean.

A query keeps only keys within a limit, estimated from a random sample of the bank. The sample holds e =
k·sample/M of the k nearest rows on average; the limit is the sample's key number e + 4√e + 2. It is too low
for two queries in 10⁵. Those queries, and queries with more keys than fit, are scored in float64 over the
whole bank. The sample affects speed, never the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mclst.kernels.definition.contract import ProviderError

# Queries per block; more would not use a device better.
_MAX_QUERIES = 8192
_MIN_SAMPLE, _MAX_SAMPLE = 1024, 16384
# k/M from which the mean is a dense product. Estimated, not yet measured; `dense_from` overrides it.
DENSE_FROM = 0.04
WORKSPACE_BYTES = 512 << 20
# Kernels count rows, and the words of all queries' bit sets, in 32 bits.
MAX_ROWS, _MAX_WORDS = 1 << 30, (1 << 31) - 1


@dataclass(frozen=True)
class Plan:
    """Sizes of one retrieval.

    sample: bank rows whose keys set a query's limit; 0 if all M keys are kept.
    sample_rank: rank of the sample key that sets the limit, from 1.
    capacity: room for kept keys per query.
    queries: queries per block.
    slots: queries scored in float64 over the whole bank at once.
    dense: whether the mean is a dense product.
    """

    sample: int
    sample_rank: int
    capacity: int
    queries: int
    slots: int
    dense: bool

    @property
    def key_stride(self) -> int:
        """Distance between the keys of consecutive queries."""
        return max(self.capacity, self.sample)


def make_plan(
    rows: int,
    columns: int,
    k: int,
    genes: int,
    *,
    multiprocessors: int,
    workspace_bytes: int = WORKSPACE_BYTES,
    dense_from: float = DENSE_FROM,
    sample: int | None = None,
) -> Plan:
    """Plan the retrieval from a bank of `rows` rows whose points have `columns` padded columns.

    sample: forces the number of sampled rows; 0 keeps all keys.
    Raises ProviderError, with the most rows that are possible, if the workspace does not hold one query. In
    the default workspace those are about 65 million, as each row takes a score in float64.
    """

    def planned(rows: int) -> Plan:
        return _plan(rows, columns, min(k, rows), genes, multiprocessors, workspace_bytes, dense_from, sample)

    plan = planned(rows)
    if plan.queries < 1 or rows > MAX_ROWS:
        fewest, most = 0, min(rows, MAX_ROWS + 1)
        while most - fewest > 1:
            middle = (fewest + most) // 2
            fewest, most = (middle, most) if planned(middle).queries >= 1 else (fewest, middle)
        raise ProviderError(
            f"the bank has {rows:,} rows, and a workspace of {workspace_bytes / 2**20:.0f} MiB holds a query "
            f"against {fewest:,}; split the bank (mclst.kernels.shards), or give the cuda provider a larger "
            "workspace"
        )
    return plan


def _plan(
    rows: int,
    columns: int,
    k: int,
    genes: int,
    multiprocessors: int,
    workspace_bytes: int,
    dense_from: float,
    sample: int | None,
) -> Plan:
    """As `make_plan`; its `queries` are below 1 where the workspace is too small."""
    size = min(max(_MIN_SAMPLE, 16 * rows // k), _MAX_SAMPLE) if sample is None else sample
    expected = k * size / rows
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 2)
    kept = math.ceil((rank + 6 * math.sqrt(rank) + 4) * rows / size) if size else rows
    if (sample is None and (size >= rows // 2 or kept >= rows // 2)) or rank > size or k == rows:
        size, rank = 0, 0
    capacity = max(k, min(rows, kept) if size else rows)
    slots = max(1, min(multiprocessors, workspace_bytes // 8 // (8 * rows)))
    remaining = workspace_bytes - 8 * rows * slots
    queries = min(
        _MAX_QUERIES,
        _MAX_WORDS // -(-rows // 32),
        remaining // bytes_per_query(rows, columns, k, genes, capacity, size),
    )
    return Plan(size, rank, capacity, queries, slots, k >= dense_from * rows)


def bytes_per_query(rows: int, columns: int, k: int, genes: int, capacity: int, sample: int) -> int:
    """Workspace per query, including its input and output, which are there twice."""
    keys = 4 * max(capacity, sample) + 16 * capacity
    return keys + 12 * columns + 8 * k + rows // 8 + 8 * genes + 64


def bank_bytes(rows: int, d: int, padded: int, genes: int, *, points: bool, dense: bool, half: bool) -> int:
    """Device memory of a bank of `rows` rows of `d` columns; a few kilobytes are left out.

    padded: columns of a point. points: whether keys are computed from points, not from the rows themselves.
    """
    values = 4 if dense or not half else 2  # a dense product splits each value into two halves
    past_the_end = 8192 * points + 16384 * dense  # what blocks of 128 points or genes may read
    return rows * (4 * d + 8 + (4 * padded + 8 if points else 0) + values * genes) + past_the_end
