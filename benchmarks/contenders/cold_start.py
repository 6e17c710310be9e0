"""From the start of a fresh process to its first expression, step by step; and the memory such a process needs.

Run as a program it is that process: it does the work of `mclst-infer` up to the first spot's expression, then more
batches, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from mclst.benchmarks.harness.subprocess_json import run_apart
from mclst.runtime.resources import peak_bytes


def cold_start(
    graph: Path, provider: str, precision: str = "fp32", *, tile_px: int, batch: int = 16, slide: Path | None = None,
    spots: Path | None = None, bundle: Path | None = None, more: int = 4, timeout: float = 300.0,
) -> dict[str, Any]:  # fmt: skip
    """Seconds from the start of a process to its first result, by step, and its peak memory.

    graph: the encoder, of tiles of `tile_px`. slide, spots, bundle: with all three the first result is the expression of the first batch of
    spots read from the slide; without, the embedding of a blank tile. more: batches encoded after the first, so that the peak memory is
    that of work. Raises ResourceError where the process fails.
    """
    words = [
        "--graph",
        str(graph),
        "--provider",
        provider,
        "--precision",
        precision,
        "--tile",
        str(tile_px),
        "--batch",
        str(batch),
        "--more",
        str(more),
    ]
    if slide is not None and spots is not None and bundle is not None:
        words += ["--slide", str(slide), "--spots", str(spots), "--bundle", str(bundle)]
    started = time.time()
    told = run_apart(
        "mclst.benchmarks.contenders.cold_start",
        words,
        what=f"a fresh process of {provider} {precision}",
        advice="leave it out, or choose another provider",
        timeout=timeout,
    )
    moments = told.pop("moments")
    steps, before = {}, started
    for name, at in moments.items():
        steps[name] = max(0.0, at - before)
        before = at
    return {
        "provider": provider,
        "precision": precision,
        "steps_s": steps,
        "first_result_s": before - started,
        **told,
    }


def _work(given: argparse.Namespace, moments: dict[str, float]) -> None:
    """As `mclst-infer`: import, open, first result; each step's end in `moments`."""
    moments["python"] = time.time()
    import numpy as np

    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.runtime.inference.providers import EncoderRequest, open_encoder
    from mclst.runtime.inference.readout import open_readout
    from mclst.runtime.slide.open import open_slide
    from mclst.runtime.tiling.tiles import Tiles, TileShape
    from mclst.sections.tables.spots import read_spots

    moments["imports"] = time.time()
    request = EncoderRequest(given.bundle or given.graph.parent, given.graph, given.precision, given.batch)
    if given.slide is None:
        session, _ = open_encoder(given.provider, request)
        moments["session"] = time.time()
        tiles = np.zeros((given.batch, given.tile, given.tile, 3), np.uint8)
        session.encode(tiles[:1])
        moments["first tile"] = time.time()
    else:
        bundle = open_bundle(given.bundle)
        moments["bundle"] = time.time()
        slide, places = open_slide(given.slide), read_spots(given.spots)
        moments["slide"] = time.time()
        session, _ = open_encoder(given.provider, request)
        readout = open_readout(bundle, None, places, session.provider)
        moments["session"] = time.time()
        tile = bundle.manifest.tile
        shape = TileShape(tile.size_px, tile.mpp, tile.pad)
        first = next(
            iter(Tiles(slide, places.xy_px[: given.batch], shape, batch_size=given.batch, workers=2))
        )
        tiles, rows = first.tiles.copy(), first.rows
        moments["first tiles read"] = time.time()
        found = session.encode(tiles)
        moments["first tiles encoded"] = time.time()
        if readout.resumable:
            readout.predict_expression(rows, found)
            moments["first expression"] = time.time()
    for _ in range(given.more):
        session.encode(tiles)


def main() -> None:
    """Be the fresh process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--provider", required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--tile", type=int, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--more", type=int, default=0)
    for name in ("--slide", "--spots", "--bundle"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    moments: dict[str, float] = {}
    _work(given, moments)
    print(json.dumps({"moments": moments, "peak_rss_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
