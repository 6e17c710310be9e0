"""Retrieval on a device beside its peers, with no package but what the measuring itself needs; for `make gpu-check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mclst.benchmarks.harness import machine
from mclst.benchmarks.retrieval.cases import CASES
from mclst.benchmarks.retrieval.measure import measure
from mclst.benchmarks.roofline.retrieval_bound import cuda_peaks, host_peaks

PROVIDERS = ("cuda", "cpu", "faiss")


def measured(cases: tuple[str, ...], n: int, rounds: int, *, cuda: bool = True) -> dict[str, Any]:
    """A document as `mclst-bench retrieval` writes; the peers are those of a device where torch sees one."""
    where, threads = machine.describe(), machine.available_cores()
    peaks, device = host_peaks(threads), None
    if cuda:
        try:
            device = cuda_peaks()
        except (ImportError, RuntimeError, AssertionError):  # without torch, or without a device for it
            device = None
    results = [
        measure(
            CASES[name], "contrastive", n=n, providers=PROVIDERS, rounds=rounds, threads=threads, peaks=peaks,
            cuda_peaks=device,
        )
        for name in cases
    ]  # fmt: skip
    return {
        "schema": "mclst-bench-retrieval/1",
        "machine": where,
        "peaks": {"host": vars(peaks), "cuda": device and vars(device)},
        "settings": {"rounds": rounds, "warm_up_rounds": 1, "threads": threads, "interleaved": True},
        "results": results,
    }


if __name__ == "__main__":
    found = measured(("her2st-l1", "visium-k2400"), n=16_384, rounds=3)
    Path(sys.argv[1]).write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
