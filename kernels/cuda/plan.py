"""How a retrieval is laid out on a device: what is kept of the keys, how queries are cut into blocks, which mean is taken.

A query keeps its keys within a limit that a random sample of the bank sets. With e = k·sample/M of the k nearest expected
in the sample, the limit is its key number e + 4√e + 2: so few of the k nearest in the sample, were that key nearer than the
k-th of the bank, come about once in 10⁴ queries, and those are scored in float64 over the whole bank, as are queries
that keep more keys than there is room for. The sample decides speed, never the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mclst.kernels.definition.contract import ProviderError

# Queries of a block; more would not fill a device better.
_MOST_QUERIES = 8192
_SMALLEST_SAMPLE, _LARGEST_SAMPLE = 1024, 16384
# Of k/M, from which the mean is one dense product. Estimated, not yet measured; `dense_from` overrides it.
DENSE_FROM = 0.04
WORKSPACE_BYTES = 512 << 20


@dataclass(frozen=True)
class Plan:
    """Sizes of one retrieval.

    sample: bank rows whose keys set a query's limit; 0 where all M keys are kept.
    wanted: of a query's keys with the sample, in order, the one that sets its limit.
    capacity: keys kept for a query.
    queries: of a block, for which the workspace has room.
    slots: queries scored in float64 over the whole bank at once.
    dense: whether the mean is a dense product.
    """

    sample: int
    wanted: int
    capacity: int
    queries: int
    slots: int
    dense: bool

    @property
    def key_stride(self) -> int:
        """Keys between one query's and the next's."""
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
    """The plan for a bank of `rows` rows whose points have `columns` padded columns.

    sample: forces the number of sampled rows; 0 keeps all keys.
    Raises ProviderError where the workspace does not hold one query.
    """
    size = min(max(_SMALLEST_SAMPLE, 16 * rows // k), _LARGEST_SAMPLE) if sample is None else sample
    expected = k * size / rows
    wanted = math.ceil(expected + 4 * math.sqrt(expected) + 2)
    kept = math.ceil((wanted + 6 * math.sqrt(wanted) + 4) * rows / size) if size else rows
    if (sample is None and (size >= rows // 2 or kept >= rows // 2)) or wanted > size or k == rows:
        size, wanted = 0, 0
    capacity = max(k, min(rows, kept) if size else rows)
    slots = max(1, min(multiprocessors, workspace_bytes // 8 // (8 * rows)))
    left = workspace_bytes - 8 * rows * slots
    queries = min(_MOST_QUERIES, left // bytes_per_query(rows, columns, k, genes, capacity, size))
    if queries < 1:
        raise ProviderError(
            f"a workspace of {workspace_bytes >> 20} MiB is too small for one query against a bank of {rows} rows; "
            "give the cuda provider a larger one"
        )
    return Plan(size, wanted, capacity, queries, slots, k >= dense_from * rows)


def bytes_per_query(rows: int, columns: int, k: int, genes: int, capacity: int, sample: int) -> int:
    """What one query takes of the workspace, its input and output included."""
    kept = 4 * max(capacity, sample) + 16 * capacity
    return kept + 8 * columns + 8 * k + rows // 8 + 4 * genes + 64
