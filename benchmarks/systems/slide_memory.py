"""Peak memory of the part that sees a whole slide, measured in a process of its own, which has no torch."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness.subprocess_json import run_apart
from mclst.runtime.bundle.manifest import Sequence
from mclst.runtime.inference.sequence import SequenceSession
from mclst.runtime.resources import peak_bytes


def places(spots: int, side: int) -> NDArray[np.int64]:
    """Array coordinates int64 [n, 2] below `side`, row by row; beyond side² spots they begin anew."""
    number = np.arange(spots)
    return np.stack([number % side, number // side % side], axis=1)


def measure_apart(path: Path, settings: Sequence, spots: int) -> dict[str, Any]:
    """Run `path` once over `spots` random spots in a fresh process.

    Gives spots, peak_mib (resident, of the whole process), open_mib (before the run: libraries and weights), seconds.
    Raises ResourceError where the process is killed or fails, as it is without enough memory.
    """
    words = (str(path), settings.model_dump_json(), str(spots))
    return run_apart(
        __spec__.name, words, what=f"{path.name} over {spots:,} spots", advice="give fewer spots"
    )


def _main(path: str, settings: str, spots: str) -> None:
    sequence, n = Sequence.model_validate_json(settings), int(spots)
    session = SequenceSession(Path(path), sequence, "cpu")
    width = session.features
    features = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
    opened, started = peak_bytes() >> 20, time.monotonic()
    found = session.predict_expression(features, places(n, sequence.positions))
    seconds = time.monotonic() - started
    if not np.isfinite(found).all():
        raise SystemExit("the expression is not finite")
    print(
        json.dumps(
            {"spots": n, "peak_mib": peak_bytes() >> 20, "open_mib": opened, "seconds": round(seconds, 1)}
        )
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])
