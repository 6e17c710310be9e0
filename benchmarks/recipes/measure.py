"""One encoder at full size: its export in one process, its graph in another."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mclst.benchmarks.harness.subprocess_json import call_in_subprocess
from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.recipe import Recipe
from mclst.runtime.resources import peak_bytes

GRAPH, TILES, FEATURES = "encoder.onnx", "tiles.npy", "features.npy"
PARITY_TILES = 2


def measure_in_subprocess(recipe: Recipe, batch: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Export and run an encoder of the table in processes of their own.

    Returns
    -------
    dict
        name, parameters, tile_px, graph_mib; export_seconds, export_peak_mib; run_peak_mib,
        relative_difference (largest, of the features, to the largest), seconds (each batch),
        tiles_per_second (median).

    Raises
    ------
    ResourceError
        If a process fails, as it does without the memory.
    """
    advice = "leave this encoder out with --recipe, or free memory"
    exported = call_in_subprocess(
        export, task=f"exporting {recipe.title}", advice=advice, name=recipe.name, folder=folder
    )
    ran = call_in_subprocess(
        run, task=f"running {recipe.title}", advice=advice, folder=folder, batch=batch, rounds=rounds
    )
    fixed = {"name": recipe.name, "parameters": recipe.parameters, "tile_px": recipe.tile_px}
    return fixed | exported | ran


def export(name: str, folder: str | Path) -> dict[str, Any]:
    """Write the graph, and a few tiles with what torch makes of them."""
    import torch

    from mclst.benchmarks.recipes.two_blocks import RandomEncoder
    from mclst.export.onnx.graph import preprocess, write_graph
    from mclst.export.parity.tiles import synthetic_tiles
    from mclst.runtime.bundle.manifest import Preprocessing, Tile

    recipe, folder = find_recipe(name), Path(folder)
    network = RandomEncoder(recipe, torch.nn.Identity()).eval().requires_grad_(False)
    tile, settings = Tile(size_px=recipe.tile_px), Preprocessing(mean=recipe.mean, std=recipe.std)
    started = time.monotonic()
    write_graph(network, tile, settings, folder / GRAPH)
    seconds, peak = time.monotonic() - started, peak_bytes() >> 20
    pixels = synthetic_tiles(tile, PARITY_TILES).pixels
    with torch.inference_mode():
        np.save(folder / FEATURES, network.encode_tiles(preprocess(pixels, settings)).numpy())
    np.save(folder / TILES, pixels)
    size = sum(path.stat().st_size for path in folder.glob(f"{GRAPH}*"))
    return {
        "graph_mib": round(size / (1 << 20)),
        "export_seconds": round(seconds, 1),
        "export_peak_mib": peak,
    }


def run(folder: str | Path, batch: int, rounds: int) -> dict[str, Any]:
    """Compare the graph with torch and time it."""
    from mclst.runtime.providers.opening import open_session

    folder = Path(folder)
    session = open_session(folder / GRAPH, "cpu")
    pixels, expected = np.load(folder / TILES), np.load(folder / FEATURES)
    actual = np.concatenate([session.encode(pixels[i : i + 1]) for i in range(len(pixels))])
    tiles = np.resize(pixels, (batch, *pixels.shape[1:]))
    session.encode(tiles)
    seconds = []
    for _ in range(rounds):
        started = time.monotonic()
        session.encode(tiles)
        seconds.append(time.monotonic() - started)
    return {
        "run_peak_mib": peak_bytes() >> 20,
        "relative_difference": float(np.abs(actual - expected).max() / np.abs(expected).max()),
        "seconds": [round(s, 4) for s in seconds],
        "tiles_per_second": round(batch / median(seconds), 3),
    }
