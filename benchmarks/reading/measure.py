"""Tiles per second of slide readers: the same tiles of the same slide, interleaved."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.benchmarks.harness.measure import summarize, time_interleaved
from mclst.benchmarks.reading.readers import MAY_CRASH, READERS, Corners, survives
from mclst.runtime.errors import SlideError
from mclst.runtime.slide.open import open_slide


def tile_corners(width: int, height: int, size: int, n: int, order: str, seed: int = 0) -> Corners:
    """Upper left corners (x, y) of `n` tiles at level 0, int64 [n, 2]; ValueError where the slide holds none.

    order: "dense", side by side over a square part (perhaps fewer than n), or "random", anywhere.
    """
    if min(width, height) < size:
        raise ValueError(f"a slide of {width} x {height} px holds no tile of {size} px")
    if order == "random":
        return np.random.default_rng(seed).integers(0, (width - size + 1, height - size + 1), (n, 2))
    columns, rows = width // size, height // size
    across = min(columns, max(1, round(n**0.5)), n)
    number = np.arange(min(n, across * rows))
    return np.stack([number % across, number // across], axis=1) * size


def measure(
    path: Path,
    *,
    size: int,
    n: int,
    order: str,
    workers: int,
    rounds: int,
    peers: bool = True,
    on_round: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Time every installed reader on the tiles of one order; SlideError where mclst cannot read.

    Every reader opens the slide anew in each round. The result has tiles per second by wall clock and by CPU
    time of all threads, and how many of a reader's tiles equal mclst's byte for byte.
    """
    with open_slide(path) as slide:
        try:
            corners = tile_corners(slide.width_px, slide.height_px, size, n, order)
        except ValueError as error:
            raise SlideError(f"{path}: {error}") from error
    checksums: dict[str, NDArray[np.uint32]] = {}
    skipped = {}
    for name, (module, read) in READERS.items():
        if not (peers or name == "mclst"):
            continue
        if importlib.util.find_spec(module) is None:
            skipped[name] = "not installed"
            continue
        if name in MAY_CRASH and not survives(name, path, size):
            skipped[name] = "crashes on this slide"
            continue
        sums = np.zeros(len(corners), np.uint32)

        def check(row: int, tile: NDArray[np.uint8], sums: NDArray[np.uint32] = sums) -> None:
            sums[row] = zlib.crc32(np.ascontiguousarray(tile).data)

        try:
            read(path, corners, size, workers, check)
        except Exception as error:  # a peer may fail in any way; that is a result
            if name == "mclst":
                raise
            skipped[name] = f"fails: {' '.join(str(error).split())[:200]}"
            continue
        checksums[name] = sums
    contenders = {
        name: partial(
            READERS[name][1],
            path,
            corners,
            size,
            workers,
            _discard if name == "mclst" else _copy_to_batch(size),
        )
        for name in checksums
    }
    timed = time_interleaved(contenders, rounds, warm_up=0, on_round=on_round)
    results = {}
    for name, samples in timed.samples.items():
        rate = {
            "wall": summarize([len(corners) / s for s in samples.wall_s]),
            "cpu": summarize([len(corners) / max(s, 1e-9) for s in samples.cpu_s]),
        }
        results[name] = {
            "tiles_per_second": rate,
            "equal_to_mclst": int((checksums[name] == checksums["mclst"]).sum()),
        }
    return {
        "order": order,
        "workers": workers,
        "tiles": len(corners),
        "size_px": size,
        "load": timed.load,
        "readers": results,
        "skipped": skipped,
    }


def _discard(row: int, tile: NDArray[np.uint8]) -> None:
    """mclst's tiles are in a batch already."""


def _copy_to_batch(size: int) -> Callable[[int, NDArray[np.uint8]], None]:
    """Copy each tile into a batch, as an encoder takes it."""
    batch = np.empty((64, size, size, 3), np.uint8)

    def keep(row: int, tile: NDArray[np.uint8]) -> None:
        batch[row % 64] = tile

    return keep
