"""Sizes of a retrieval on a device: keys per query, queries per block, and the kernel for the mean.

A query keeps only keys within a limit, estimated from a random sample of the bank. The sample holds e =
k·sample/M of the k nearest rows on average; the limit is the sample's key number e + 4√e + 2. It is too low
for about one query in 10⁴. Those queries, and queries with more keys than fit, are scored in float64 over the
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
    Raises ProviderError if the workspace does not hold one query.
    """
    size = min(max(_MIN_SAMPLE, 16 * rows // k), _MAX_SAMPLE) if sample is None else sample
    expected = k * size / rows
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 2)
    kept = math.ceil((rank + 6 * math.sqrt(rank) + 4) * rows / size) if size else rows
    if (sample is None and (size >= rows // 2 or kept >= rows // 2)) or rank > size or k == rows:
        size, rank = 0, 0
    capacity = max(k, min(rows, kept) if size else rows)
    slots = max(1, min(multiprocessors, workspace_bytes // 8 // (8 * rows)))
    remaining = workspace_bytes - 8 * rows * slots
    queries = min(_MAX_QUERIES, remaining // bytes_per_query(rows, columns, k, genes, capacity, size))
    if queries < 1:
        raise ProviderError(
            f"a workspace of {workspace_bytes >> 20} MiB is too small for one query against "
            f"a bank of {rows} rows; give the cuda provider a larger one"
        )
    return Plan(size, rank, capacity, queries, slots, k >= dense_from * rows)


def bytes_per_query(rows: int, columns: int, k: int, genes: int, capacity: int, sample: int) -> int:
    """Workspace per query, including its input and output."""
    keys = 4 * max(capacity, sample) + 16 * capacity
    return keys + 8 * columns + 8 * k + rows // 8 + 4 * genes + 64
