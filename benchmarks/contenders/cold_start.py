"""Cold start: a fresh process up to its first expression, step by step, and its peak memory.

As a program this module is that process: it works like `mclst-infer` up to the first spot's expression,
encodes more batches, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from mclst.benchmarks.harness.subprocess_json import run_json_subprocess
from mclst.runtime.resources import peak_bytes


def cold_start(
    graph: Path, provider: str, precision: str = "fp32", *, tile_px: int, batch: int = 16,
    slide: Path | None = None, spots: Path | None = None, bundle: Path | None = None,
    more: int = 4, timeout: float = 300.0,
) -> dict[str, Any]:  # fmt: skip
    """Time a fresh process up to its first result.

    Parameters
    ----------
    graph : Path
        Encoder of tiles of `tile_px`.
    slide, spots, bundle : Path, optional
        With all three the first result is the expression of the first batch of spots; without, the embedding
        of a blank tile.
    more : int
        Batches encoded after the first, so that the peak memory is that of steady work.
    timeout : float
        Seconds.

    Returns
    -------
    dict
        provider, precision, steps_s, first_result_s, peak_rss_bytes.

    Raises
    ------
    ResourceError
        If the process fails.
    """
    options: dict[str, object] = {
        "graph": graph, "provider": provider, "precision": precision, "tile": tile_px, "batch": batch,
        "more": more,
    }  # fmt: skip
    if slide is not None and spots is not None and bundle is not None:
        options |= {"slide": slide, "spots": spots, "bundle": bundle}
    started = time.time()
    result = run_json_subprocess(
        "mclst.benchmarks.contenders.cold_start",
        [word for name, value in options.items() for word in (f"--{name}", str(value))],
        task=f"a fresh process of {provider} {precision}",
        advice="omit it, or choose another provider",
        timeout=timeout,
    )
    steps, before = {}, started
    for name, moment in result.pop("moments").items():
        steps[name] = max(0.0, moment - before)
        before = moment
    return {
        "provider": provider,
        "precision": precision,
        "steps_s": steps,
        "first_result_s": before - started,
        **result,
    }


def _work(options: argparse.Namespace, moments: dict[str, float]) -> None:
    """Import, open, compute the first result; record the end of each step in `moments`."""
    moments["python"] = time.time()
    import numpy as np

    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.runtime.inference.providers import EncoderRequest, open_encoder
    from mclst.runtime.inference.readout import open_readout
    from mclst.runtime.slide.open import open_slide
    from mclst.runtime.tiling.bounds import check_spots
    from mclst.runtime.tiling.tiles import Tiles, TileShape
    from mclst.sections.tables.spots import read_spots

    moments["imports"] = time.time()
    request = EncoderRequest(
        options.bundle or options.graph.parent, options.graph, options.precision, options.batch
    )
    if options.slide is None:
        session, _ = open_encoder(options.provider, request)
        moments["session"] = time.time()
        tiles = np.zeros((options.batch, options.tile, options.tile, 3), np.uint8)
        session.encode(tiles[:1])
        moments["first tile"] = time.time()
    else:
        bundle = open_bundle(options.bundle)
        moments["bundle"] = time.time()
        slide, spots = open_slide(options.slide), read_spots(options.spots)
        check_spots(spots, slide)
        moments["slide"] = time.time()
        session, _ = open_encoder(options.provider, request)
        readout = open_readout(bundle, None, spots, session.provider)
        moments["session"] = time.time()
        tile = bundle.manifest.tile
        shape = TileShape(tile.size_px, tile.mpp, tile.pad)
        first = next(
            iter(Tiles(slide, spots.xy_px[: options.batch], shape, batch_size=options.batch, workers=2))
        )
        tiles, rows = first.tiles.copy(), first.rows
        moments["first tiles read"] = time.time()
        embedding = session.encode(tiles)
        moments["first tiles encoded"] = time.time()
        if bundle.manifest.kind != "slide":
            readout.predict_expression(rows, embedding)
            moments["first expression"] = time.time()
    for _ in range(options.more):
        session.encode(tiles)


def main() -> None:
    """Run as the fresh process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--provider", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--tile", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--more", type=int, required=True)
    for name in ("--slide", "--spots", "--bundle"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    moments: dict[str, float] = {}
    _work(options, moments)
    print(json.dumps({"moments": moments, "peak_rss_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
