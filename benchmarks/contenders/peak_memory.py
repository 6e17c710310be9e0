"""The memory of one contender, alone in a process of its own: an encoder over some batches, or a run from slide to map.

Run as a program it is that process. What a device holds is not counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mclst.benchmarks.harness.subprocess_json import run_apart
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.errors import ResourceError
from mclst.runtime.resources import peak_bytes

BATCHES = 3
SECONDS = 900.0


def measure_alone(name: str, work: str, **given: Any) -> dict[str, Any]:
    """Do `work`, "encoder" or "run", as the contender `name` in a fresh process.

    given: plain values, arguments of `_encoder` or `_run`. Gives name, before_bytes (resident once the harness and the
    bundle are there, before the contender's libraries are) and peak_rss_bytes; or None and `why` it failed.
    """
    asked = json.dumps({"work": work, "name": name, **given}, default=str)
    try:
        found = run_apart(
            "mclst.benchmarks.contenders.peak_memory",
            [asked],
            what=name,
            advice="leave it out",
            timeout=SECONDS,
        )
    except ResourceError as error:
        return {"name": name, "before_bytes": None, "peak_rss_bytes": None, "why": str(error)}
    return {"name": name, **found, "why": ""}


def _encoder(
    name: str, bundle: str, ckpt: str | None, settings: list[tuple[str, str]], threads: int, batch: int
) -> int:
    """Encode some batches of noise; the bytes held before."""
    from mclst.benchmarks.contenders.encoders import ours, ways
    from mclst.benchmarks.contenders.inputs import make_inputs

    found = open_bundle(bundle)
    before = peak_bytes()
    checkpoint = Path(ckpt) if ckpt is not None and name.startswith("torch") else None
    given = make_inputs(found, checkpoint, settings, threads)
    mine = {f"mclst {provider} {precision}": (provider, precision) for provider, precision in settings}
    encoder = ours(given, *mine[name], batch) if name in mine else ways(given)[name](given)
    side = given.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    for _ in range(BATCHES):
        encoder.encode(tiles)
    return before


def _run(
    name: str, bundle: str, ckpt: str | None, slide: str, spots: str, threads: int, how: dict[str, Any]
) -> int:
    """Take the slide to its expression once; the bytes held before."""
    from mclst.benchmarks.contenders.inputs import open_notebook
    from mclst.benchmarks.contenders.slide_runs import PUBLISHED, BaselineRun, MclstRun
    from mclst.sections.tables.spots import read_spots

    found, places = open_bundle(bundle), read_spots(spots)
    before = peak_bytes()
    with tempfile.TemporaryDirectory(prefix="mclst-bench-") as folder:
        if name == PUBLISHED:
            notebook = open_notebook(found, None if ckpt is None else Path(ckpt), Path(slide), threads)
            run: Callable[[], None] = BaselineRun(notebook, Path(slide), places)
        else:
            run = MclstRun(found, Path(slide), places, Path(folder), **how)
        run()
    return before


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    works: dict[str, Callable[..., int]] = {"encoder": _encoder, "run": _run}
    held = works[asked.pop("work")](**asked)
    print(json.dumps({"before_bytes": held, "peak_rss_bytes": peak_bytes()}))
