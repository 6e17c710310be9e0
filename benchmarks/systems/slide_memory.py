"""Peak memory of a whole-slide graph, measured in a process without torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness.subprocess_json import call_in_subprocess
from mclst.runtime.bundle.manifest import SlideNetwork
from mclst.runtime.inference.slide_network import SlideNetworkSession
from mclst.runtime.resources import peak_bytes


def array_positions(spots: int, side: int) -> NDArray[np.int64]:
    """Array coordinates int64 [n, 2] below `side`, row by row; after side² spots they repeat."""
    number = np.arange(spots)
    return np.stack([number % side, number // side % side], axis=1)


def measure_in_subprocess(path: Path, settings: SlideNetwork, spots: int) -> dict[str, Any]:
    """Run the graph at `path` on `spots` random spots in a fresh process; ResourceError where that fails.

    Returns spots, peak_mib (resident, whole process), open_mib (libraries and weights) and seconds.
    """
    return call_in_subprocess(
        run_network, task=f"{path.name} over {spots:,} spots", advice="give fewer spots",
        path=path, settings=settings.model_dump_json(), spots=spots,
    )  # fmt: skip


def run_network(path: str, settings: str, spots: int) -> dict[str, Any]:
    """Run the graph on random features; see `measure_in_subprocess`."""
    network = SlideNetwork.model_validate_json(settings)
    session = SlideNetworkSession(Path(path), network, "cpu")
    features = np.random.default_rng(0).normal(size=(spots, session.features)).astype(np.float32)
    open_mib, started = peak_bytes() >> 20, time.monotonic()
    expression = session.predict_expression(features, array_positions(spots, network.positions))
    seconds = time.monotonic() - started
    if not np.isfinite(expression).all():
        raise SystemExit("the expression is not finite")
    return {
        "spots": spots, "peak_mib": peak_bytes() >> 20, "open_mib": open_mib, "seconds": round(seconds, 1),
    }  # fmt: skip
