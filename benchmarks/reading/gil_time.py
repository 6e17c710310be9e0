"""CPU time per tile that holds the GIL while tiles of a JPEG-tiled TIFF are read: what one process can feed.

`python -m mclst.benchmarks.reading.gil_time` measures a made-up slide of 8,192 px in one thread, by both ways
in turn. Time in calls that release the GIL (decoding, reading, copies of pixels) is taken off.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import simplejpeg  # type: ignore[import-untyped]

from mclst.benchmarks.harness.machine import new_document
from mclst.benchmarks.harness.measure import summarize
from mclst.benchmarks.reading.jpeg_slide import SEGMENT_PX, TILE_PX, write_slide
from mclst.runtime.decoding import batch
from mclst.runtime.decoding import library as batch_decoder
from mclst.runtime.slide import tiff_level
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.bounds import check_centers
from mclst.runtime.tiling.tiles import TILES_PER_TASK, Tiles, TileShape

SLIDE_PX, ROUNDS, TASKS_PER_SAMPLE = 8192, 7, 4
CALLS = ("mclst_needed", "mclst_jpeg_decode", "mclst_cut")
ONE_BY_ONE, BATCHES = "one by one", "in batches"


class _Meter:
    """Thread time inside the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.thread_time() - start

        return timed


@contextmanager
def _metered(meter: _Meter, way: str) -> Iterator[None]:
    """Wrap what releases the GIL, and choose the way."""
    functions = batch_decoder.compiled()
    replaced: list[tuple[Any, str, Any]]
    if way == ONE_BY_ONE or functions is None:
        replaced = [
            (simplejpeg, "decode_jpeg", meter.wrap(simplejpeg.decode_jpeg)),
            (os, "pread", meter.wrap(os.pread)),
            (tiff_level, "can_decode", lambda: False),
        ]
    else:
        calls = {name: staticmethod(meter.wrap(getattr(functions, name))) for name in CALLS}
        wrapped = type("Wrapped", (), calls)
        replaced = [(batch, "compiled", lambda: wrapped)]
    saved = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in saved:
            setattr(owner, name, value)


def measure(path: Path, xy: np.ndarray[Any, np.dtype[np.float64]], way: str) -> list[float]:
    """Seconds per tile of each few tasks."""
    copies = _copy_seconds() if way == ONE_BY_ONE else 0.0
    meter, samples = _Meter(), []
    with _metered(meter, way), open_slide(path) as slide:
        check_centers(xy, slide, lambda row: f"tile {row}")
        tiles = Tiles(slide, xy, TileShape(TILE_PX), batch_size=len(xy), workers=1)
        slide.expect(tiles._corners, TILE_PX, 0)
        buffer = np.zeros((TILES_PER_TASK, TILE_PX, TILE_PX, 3), np.uint8)
        tasks = [tiles._order[at : at + TILES_PER_TASK] for at in range(0, len(xy), TILES_PER_TASK)]
        tiles._read_some(tasks[0], buffer)
        for first in range(1, len(tasks) - TASKS_PER_SAMPLE, TASKS_PER_SAMPLE):
            some = tasks[first : first + TASKS_PER_SAMPLE]
            meter.seconds, start = 0.0, time.thread_time()
            for rows in some:
                tiles._read_some(rows, buffer)
            spent = time.thread_time() - start - meter.seconds
            samples.append(spent / sum(map(len, some)) - copies)
    return samples


def _copy_seconds() -> float:
    """Seconds to copy a tile's pixels from the four segments under it, less than what slicing takes."""
    segment = np.zeros((SEGMENT_PX, SEGMENT_PX, 3), np.uint8)
    tile, half = np.zeros((TILE_PX, TILE_PX, 3), np.uint8), TILE_PX // 2
    parts = [(tile[y : y + half, x : x + half], segment[:half, :half]) for y in (0, half) for x in (0, half)]
    rounds = 500
    start = time.thread_time()
    for _ in range(rounds):
        for to, source in parts:
            to[:] = source
    return (time.thread_time() - start) / rounds


def main() -> None:
    """Print a JSON document."""
    document = new_document("mclst-bench-gil/1", threads=1)
    samples: dict[str, list[float]] = {ONE_BY_ONE: [], BATCHES: []}
    with TemporaryDirectory() as folder:
        path, xy = write_slide(Path(folder) / "slide.tiff", size_px=SLIDE_PX)
        for _ in range(ROUNDS):
            for way, values in samples.items():
                if way == ONE_BY_ONE or batch.can_decode():
                    values += measure(path, xy, way)
    document["results"] = [
        {"name": way, "seconds_per_tile_with_the_gil": summarize(values)}
        for way, values in samples.items()
        if values
    ]
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
