"""Cold start: a fresh process up to its first expression, step by step, and its peak memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mclst.benchmarks.harness.subprocess_json import call_in_subprocess
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
    started = time.time()
    result = call_in_subprocess(
        first_result, task=f"a fresh process of {provider} {precision}",
        advice="omit it, or choose another provider", timeout=timeout,
        graph=graph, provider=provider, precision=precision, tile_px=tile_px, batch=batch, more=more,
        slide_path=slide, spots_path=spots, bundle_path=bundle,
    )  # fmt: skip
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


def first_result(
    graph: str, provider: str, precision: str, tile_px: int, batch: int, more: int,
    slide_path: str | None, spots_path: str | None, bundle_path: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Import, open and compute like `mclst-infer` up to the first expression; then encode more batches.

    Returns `moments`, the end of each step, and peak_rss_bytes.
    """
    moments = {"python": time.time()}
    import numpy as np

    from mclst.runtime.bundle.bundle import open_bundle
    from mclst.runtime.inference.readout import open_readout
    from mclst.runtime.providers.opening import EncoderRequest, open_encoder
    from mclst.runtime.slide.open import open_slide
    from mclst.runtime.tiling.array_pitch import slide_resolution
    from mclst.runtime.tiling.bounds import check_spots
    from mclst.runtime.tiling.tiles import Tiles, TileShape
    from mclst.sections.tables.spots import read_spots

    moments["imports"] = time.time()
    folder = Path(graph).parent if bundle_path is None else Path(bundle_path)
    request = EncoderRequest(folder, Path(graph), precision, batch)
    if slide_path is None or spots_path is None or bundle_path is None:
        session, _ = open_encoder(provider, request)
        moments["session"] = time.time()
        tiles = np.zeros((batch, tile_px, tile_px, 3), np.uint8)
        session.encode(tiles[:1])
        moments["first tile"] = time.time()
    else:
        bundle = open_bundle(bundle_path)
        moments["bundle"] = time.time()
        slide, spots = open_slide(slide_path), read_spots(spots_path)
        check_spots(spots, slide)
        moments["slide"] = time.time()
        session, _ = open_encoder(provider, request)
        readout = open_readout(bundle, None, spots, session.provider)
        moments["session"] = time.time()
        tile = bundle.manifest.tile
        shape = TileShape(tile.size_px, tile.mpp, tile.pad)
        mpp = slide_resolution(slide, spots).mpp
        first = next(
            iter(Tiles(slide, spots.xy_px[:batch], shape, batch_size=batch, workers=2, slide_mpp=mpp))
        )
        tiles, rows = first.tiles.copy(), first.rows
        moments["first tiles read"] = time.time()
        embedding = session.encode(tiles)
        moments["first tiles encoded"] = time.time()
        if bundle.manifest.kind != "slide":
            readout.predict_expression(rows, embedding)
            moments["first expression"] = time.time()
    for _ in range(more):
        session.encode(tiles)
    return {"moments": moments, "peak_rss_bytes": peak_bytes()}
