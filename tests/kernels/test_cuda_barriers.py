"""No barrier and no wait of the CUDA kernels can go: without it there is a race, or the kernel fails.

One target suffices, as all have the same barriers. The cases are the smallest that need every one.
"""

from __future__ import annotations

import numpy as np
import pytest
from ptx.build import available, ptx_of
from ptx.sweep import SweepDriver
from retrieval_cases import F32, Bank, adversary, assert_same, clustered

from mclst.kernels.cuda.provider import CudaProvider
from mclst.kernels.definition.spec import RetrievalSpec

pytestmark = pytest.mark.skipif(
    not available(), reason="executing PTX needs g++, and nvcc or NVRTC; one of them is not installed"
)
Case = tuple[tuple[F32, Bank], RetrievalSpec, float]


def cases() -> list[Case]:
    """Queries and bank, the retrieval, and k/M from which the mean is dense."""
    ones = np.ones((130, 1), np.float32)
    ties, tied = adversary("duplicates across k")
    l1, l2 = (RetrievalSpec(k=7, rank=rank, distance=rank) for rank in ("l1", "l2"))
    some = RetrievalSpec(k=17, rank="l2", distance="l2")
    return [
        (clustered(9, 150, 13), RetrievalSpec(k=7, rank="cosine", distance="cosine"), 0),
        (clustered(9, 150, 17), l1, 2),  # two steps of columns
        (clustered(9, 150, 65), l2, 2),  # more steps than are under way at once
        ((ones[:60], Bank(ones, ones)), l2, 2),  # more keys within the limit than a list has room for
        ((ones[:20], Bank(ones, ones)), l1, 2),
        ((ties, tied), some, 2),  # ties of keys and of scores
        ((np.float32(1e12) * ties, tied), some, 2),  # every query against every row
        (clustered(1, 8300, 1), l1, 2),  # more words of bits than threads
    ]


def test_every_barrier_and_wait_is_needed() -> None:
    text = ptx_of(80)
    unseen = SweepDriver.all_of(text)
    assert sum(map(len, unseen.values())) > 50
    for (queries, bank), spec, dense_from in cases():
        driver = SweepDriver(text, unseen)
        cuda = CudaProvider(
            bank.embedding,
            bank.expression,
            spec,
            driver=driver,
            workspace_bytes=120_000,
            sample=64,
            dense_from=dense_from,
        )
        assert_same(cuda.aggregate(queries, neighbors=True), queries, bank, spec)
        cuda.release()
    assert {kernel: lines for kernel, lines in unseen.items() if lines} == {}
