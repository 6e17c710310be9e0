"""Retrieval on a device beside its peers, with few packages; for `make gpu-check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mclst.benchmarks.harness.machine import describe_machine
from mclst.benchmarks.retrieval.cases import CASES
from mclst.benchmarks.retrieval.measure import measure
from mclst.benchmarks.roofline.peaks import cuda_peaks, host_peaks
from mclst.runtime.resources import available_cores

PROVIDERS = ("cuda", "cpu", "faiss")


def measure_cases(cases: tuple[str, ...], n: int, rounds: int, *, cuda: bool = True) -> dict[str, Any]:
    """A document like that of `mclst-bench retrieval`; device peaks only where torch sees a device."""
    machine, threads = describe_machine(), available_cores()
    peaks, device = host_peaks(threads), None
    if cuda:
        try:
            device = cuda_peaks()
        except (ImportError, RuntimeError, AssertionError):  # no torch, or no device
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
        "machine": machine,
        "peaks": {"host": vars(peaks), "cuda": device and vars(device)},
        "settings": {"rounds": rounds, "warm_up_rounds": 1, "threads": threads, "interleaved": True},
        "results": results,
    }


if __name__ == "__main__":
    document = measure_cases(("her2st-l1", "visium-k2400"), n=16_384, rounds=3)
    Path(sys.argv[1]).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
