"""Retrieval on a device beside libraries on the same device; for `make gpu-check`.

Writes a document per case as soon as it is measured, so that a run that is stopped keeps what it has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mclst.benchmarks.gpu_check.timed_driver import TimedDriver
from mclst.benchmarks.harness.machine import describe_machine
from mclst.benchmarks.harness.measure import summarize, time_interleaved
from mclst.benchmarks.retrieval.cases import CASES, Case
from mclst.benchmarks.retrieval.measure import measure
from mclst.benchmarks.retrieval.peers import DEVICE_PEERS, Peer
from mclst.benchmarks.retrieval.synthetic import F32, Source
from mclst.benchmarks.roofline.peaks import cuda_peaks, host_peaks
from mclst.benchmarks.roofline.retrieval_bound import Peaks
from mclst.kernels.cuda.devices import open_driver
from mclst.kernels.cuda.driver import Driver
from mclst.kernels.cuda.provider import CudaProvider
from mclst.runtime.resources import available_cores

KIND = "contrastive"
SIZES = (
    *((name, 100_000, 5) for name in ("her2st-l1", "cscc-k600", "visium-k2400", "her2st-l2", "visium-k200")),
    ("her2st-l1", 1_000_000, 2),
    ("visium-k2400", 1_000_000, 2),
)
"""Case, queries and rounds, in the order in which they are measured."""
_STAGED = 16_384


class OnDevice:
    """Queries in device memory, as other libraries hand them over."""

    def __init__(self, driver: Driver, queries: F32) -> None:
        self._driver, self._address = driver, driver.allocate(queries.nbytes)
        driver.upload(self._address, queries)
        self.__cuda_array_interface__ = {
            "shape": queries.shape,
            "typestr": "<f4",
            "data": (self._address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }

    def free(self) -> None:
        """Free the memory."""
        self._driver.free(self._address)


def device_times(case: Case, n: int, driver: Driver, rounds: int) -> dict[str, Any]:
    """Device seconds per stage for `n` queries, and wall seconds with queries on the device already."""
    source = Source(KIND, case)
    bank, queries = source.bank(), source.queries(n)
    timed = TimedDriver(driver)
    cuda = CudaProvider(bank.embedding, bank.expression, case.spec, driver=timed)
    try:
        cuda.aggregate(queries)
        timed.take_seconds()
        stages = [(cuda.aggregate(queries), timed.take_seconds())[1] for _ in range(rounds)]
    finally:
        cuda.release()
    plain = CudaProvider(bank.embedding, bank.expression, case.spec, driver=driver)
    there = OnDevice(driver, queries)
    try:
        walls = time_interleaved({"from the device": lambda: plain.aggregate_from(there)}, rounds)
    finally:
        there.free()
        plain.release()
    return {
        "queries": n,
        "plan": vars(plain.plan),
        "stages_s": {name: float(np.median([seconds[name] for seconds in stages])) for name in stages[0]},
        "from_device_wall_s": summarize(walls.samples["from the device"].wall_s),
    }


def measure_case(
    name: str,
    n: int,
    rounds: int,
    driver: Driver,
    peaks: tuple[Peaks, Peaks | None],
    *,
    peers: Sequence[Peer] = DEVICE_PEERS,
    staged: int = _STAGED,
) -> dict[str, Any]:
    """The document of one case: like that of `mclst-bench retrieval`, with the stages on the device."""
    case = CASES[name]
    device = device_times(case, min(n, staged), driver, rounds)
    result = measure(
        case, KIND, n=n, providers=("cuda",), rounds=rounds, threads=available_cores(), peaks=peaks[0],
        cuda_peaks=peaks[1], peers=peers,
    )  # fmt: skip
    return {
        "schema": "mclst-bench-retrieval/1",
        "machine": describe_machine(),
        "peaks": {"host": vars(peaks[0]), "cuda": peaks[1] and vars(peaks[1])},
        "settings": {"rounds": rounds, "warm_up_rounds": 1, "interleaved": True},
        "device": device,
        "results": [result],
    }


def run(
    folder: Path,
    sizes: Sequence[tuple[str, int, int]],
    measure_one: Callable[[str, int, int], dict[str, Any]],
) -> None:
    """Measure the cases in order; write each document when it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, n, rounds in sizes:
        document = measure_one(name, n, rounds)
        part = folder / f".{name}-n{n}.part"
        part.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
        part.rename(folder / f"{name}-n{n}.json")
        print(_summary(name, n, document), flush=True)


def _summary(name: str, n: int, document: dict[str, Any]) -> str:
    contenders = document["results"][0]["contenders"]
    walls = ", ".join(f"{c['name']} {1e9 * c['wall_s']['median'] / n:.0f} ns" for c in contenders)
    return f"{name}, {n:,} queries: {walls} a query"


def main() -> None:
    """Measure all cases into the folder of the command line."""
    driver = open_driver()
    driver.load()
    try:
        device = cuda_peaks()
    except (ImportError, RuntimeError, AssertionError):  # no torch, or none with CUDA
        device = None
    peaks = (host_peaks(available_cores(), side=1024, copy_bytes=64 << 20), device)
    run(Path(sys.argv[1]), SIZES, lambda name, n, rounds: measure_case(name, n, rounds, driver, peaks))


if __name__ == "__main__":
    main()
