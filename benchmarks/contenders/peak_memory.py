"""Peak memory of a contender in its own process: an encoder on some batches, or a run from slide to map.

Device memory is not counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mclst.benchmarks.harness.subprocess_json import call_in_subprocess
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.errors import MclstError
from mclst.runtime.resources import peak_bytes

BATCHES = 3
TIMEOUT_S = 900.0


def measure_peak_memory(name: str, work: str, **arguments: Any) -> dict[str, Any]:
    """Measure the contender `name` in a fresh process.

    Parameters
    ----------
    work : str
        "encoder" or "run".
    **arguments
        Of `encode_batches` or `run_slide`.

    Returns
    -------
    dict
        name, before_bytes (resident with harness and bundle, before the contender's libraries) and
        peak_rss_bytes, or None and `why` it failed.
    """
    function: Callable[..., Any] = encode_batches if work == "encoder" else run_slide
    try:
        result = call_in_subprocess(
            function, task=name, advice="omit it", timeout=TIMEOUT_S, name=name, **arguments
        )
    except MclstError as error:
        return {"name": name, "before_bytes": None, "peak_rss_bytes": None, "why": str(error)}
    return {"name": name, **result, "why": ""}


def encode_batches(
    name: str, bundle_path: str, ckpt: str | None, settings: list[tuple[str, str]], threads: int, batch: int
) -> dict[str, int]:
    """Encode some batches of noise; return the resident bytes before, and at the peak."""
    from mclst.benchmarks.contenders.encoders import open_mclst, peer_openers
    from mclst.benchmarks.contenders.inputs import make_inputs

    bundle = open_bundle(bundle_path)
    before = peak_bytes()
    checkpoint = Path(ckpt) if ckpt is not None and name.startswith("torch") else None
    inputs = make_inputs(bundle, checkpoint, settings, threads)
    ours = {f"mclst {provider} {precision}": (provider, precision) for provider, precision in settings}
    encoder = open_mclst(inputs, *ours[name], batch) if name in ours else peer_openers(inputs)[name](inputs)
    side = inputs.tile_px
    tiles = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    for _ in range(BATCHES):
        encoder.encode(tiles)
    return {"before_bytes": before, "peak_rss_bytes": peak_bytes()}


def run_slide(
    name: str,
    bundle_path: str,
    ckpt: str | None,
    slide: str,
    spots_path: str,
    threads: int,
    options: dict[str, Any],
) -> dict[str, int]:
    """Predict the slide once; return the resident bytes before, and at the peak."""
    from mclst.benchmarks.contenders.inputs import open_notebook
    from mclst.benchmarks.contenders.slide_runs import PUBLISHED, BaselineRun, MclstRun
    from mclst.sections.tables.spots import read_spots

    bundle, spots = open_bundle(bundle_path), read_spots(spots_path)
    before = peak_bytes()
    with tempfile.TemporaryDirectory(prefix="mclst-bench-") as folder:
        if name == PUBLISHED:
            notebook = open_notebook(bundle, None if ckpt is None else Path(ckpt), Path(slide), threads)
            run: Callable[[], None] = BaselineRun(notebook, Path(slide), spots)
        else:
            run = MclstRun(bundle, Path(slide), spots, Path(folder), **options)
        run()
    return {"before_bytes": before, "peak_rss_bytes": peak_bytes()}
