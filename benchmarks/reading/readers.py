"""Reading the same tiles of a slide by mclst and by others: each opens the slide afresh and hands over every tile.

A tile is uint8 [size, size, 3] RGB of level 0, at `corners` [n, 2] (x, y), wholly inside the slide. With several
workers a reader uses threads, each with a handle of its own where its library asks for that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.tiles import Tiles, TileShape

Keep = Callable[[int, NDArray[np.uint8]], None]
"""Called with each tile's number and pixels, from any thread; the pixels are valid during the call."""

Corners = NDArray[np.int64]
Reader = Callable[[Path, Corners, int, int, Keep], None]
"""(slide, corners, size, workers, keep)."""

_BATCH = 64
CUCIM_CACHE_MIB = 256
"""As much as mclst's own cache may hold."""


def _mclst(path: Path, corners: Corners, size: int, workers: int, keep: Keep) -> None:
    with open_slide(path) as slide:
        places = corners + size // 2
        for batch in Tiles(
            slide, places.astype(np.float64), TileShape(size), batch_size=_BATCH, workers=workers
        ):
            if batch.failed:
                raise ValueError(batch.failed[0][1])
            for row, tile in zip(batch.rows.tolist(), batch.tiles, strict=True):
                keep(row, tile)


def _in_threads(
    opened: Callable[[], AbstractContextManager[Any]],
    read: Callable[[Any, int, int], NDArray[np.uint8]],
    corners: Corners,
    workers: int,
    keep: Keep,
) -> None:
    """Cut the corners into as many runs as there are workers, each read by a thread with its own handle."""

    def some(rows: NDArray[np.intp]) -> None:
        with opened() as handle:
            for row in rows.tolist():
                keep(row, read(handle, *corners[row].tolist()))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(some, np.array_split(np.arange(len(corners)), workers)))


def _openslide(path: Path, corners: Corners, size: int, workers: int, keep: Keep) -> None:
    openslide = import_module("openslide")

    def read(handle: Any, x: int, y: int) -> NDArray[np.uint8]:
        return np.asarray(handle.read_region((x, y), 0, (size, size)))[..., :3]

    _in_threads(lambda: openslide.OpenSlide(path), read, corners, workers, keep)


def _tifffile_zarr(path: Path, corners: Corners, size: int, workers: int, keep: Keep) -> None:
    tifffile, zarr = import_module("tifffile"), import_module("zarr")

    class ModelCache(ExitStack):
        def __enter__(self) -> Any:
            tif = self.enter_context(tifffile.TiffFile(path))
            return zarr.open_array(self.enter_context(tif.series[0].aszarr(level=0)), mode="r")

    def read(handle: Any, x: int, y: int) -> NDArray[np.uint8]:
        return np.asarray(handle[y : y + size, x : x + size])

    _in_threads(ModelCache, read, corners, workers, keep)


def _tiffslide(path: Path, corners: Corners, size: int, workers: int, keep: Keep) -> None:
    tiffslide = import_module("tiffslide")

    def read(handle: Any, x: int, y: int) -> NDArray[np.uint8]:
        return np.asarray(handle.read_region((x, y), 0, (size, size), as_array=True))

    _in_threads(lambda: tiffslide.TiffSlide(path), read, corners, workers, keep)


def _pyvips(path: Path, corners: Corners, size: int, workers: int, keep: Keep) -> None:
    pyvips = import_module("pyvips")

    class ModelCache(ExitStack):
        def __enter__(self) -> Any:
            return pyvips.Region.new(pyvips.Image.new_from_file(str(path), access="random"))

    def read(handle: Any, x: int, y: int) -> NDArray[np.uint8]:
        pixels = np.frombuffer(handle.fetch(x, y, size, size), np.uint8)
        return pixels.reshape(size, size, -1)[..., :3]

    _in_threads(ModelCache, read, corners, workers, keep)


def _cucim(path: Path, corners: Corners, size: int, workers: int, keep: Keep) -> None:
    cucim = import_module("cucim")
    # Its cache is the process's: emptied, so that no reading finds the one before.
    cucim.CuImage.cache("nocache")
    cucim.CuImage.cache("per_process", memory_capacity=CUCIM_CACHE_MIB)

    def read(handle: Any, x: int, y: int) -> NDArray[np.uint8]:
        return np.asarray(handle.read_region((x, y), (size, size), 0))[..., :3]

    _in_threads(lambda: nullcontext(cucim.CuImage(str(path))), read, corners, workers, keep)


READERS: dict[str, tuple[str, Reader]] = {
    "mclst": ("numpy", _mclst),
    "OpenSlide": ("openslide", _openslide),
    "tifffile + zarr": ("zarr", _tifffile_zarr),
    "tiffslide": ("tiffslide", _tiffslide),
    "pyvips": ("pyvips", _pyvips),
    "cuCIM": ("cucim", _cucim),
}
"""By name: the module that must be installed, and the reader. mclst first."""

MAY_DIE = {"cuCIM"}
"""Readers that end the process on some slides (deflate tiles): these are asked in a process of their own first."""


def survives(name: str, path: Path, size: int) -> bool:
    """Whether a reader reads the first tile of a slide and lives."""
    source = (
        "import sys; from pathlib import Path; import numpy as np; from mclst.benchmarks.reading.readers import READERS\n"
        "READERS[sys.argv[1]][1](Path(sys.argv[2]), np.zeros((1, 2), np.int64), int(sys.argv[3]), 1, lambda *tile: None)"
    )
    words = [sys.executable, "-c", source, name, str(path), str(size)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0
