"""Slide readers under one interface: each opens the slide and passes every tile to a callback.

A tile is uint8 [size, size, 3] RGB of level 0, at `corners` [n, 2] (x, y), wholly inside the slide. With
several workers a reader uses threads, each with its own handle where its library needs that.
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

OnTile = Callable[[int, NDArray[np.uint8]], None]
"""Receives each tile's row and pixels, from any thread; the pixels are valid during the call."""

Corners = NDArray[np.int64]
Reader = Callable[[Path, Corners, int, int, OnTile], None]
"""(slide, corners, size, workers, on_tile)."""

_BATCH = 64
CUCIM_CACHE_MIB = 256
"""The size of mclst's own cache."""


def _mclst(path: Path, corners: Corners, size: int, workers: int, on_tile: OnTile) -> None:
    with open_slide(path) as slide:
        centers = corners + size // 2
        for batch in Tiles(
            slide, centers.astype(np.float64), TileShape(size), batch_size=_BATCH, workers=workers
        ):
            if batch.failed:
                raise ValueError(batch.failed[0][1])
            for row, tile in zip(batch.rows.tolist(), batch.tiles, strict=True):
                on_tile(row, tile)


def _in_threads(
    open_handle: Callable[[], AbstractContextManager[Any]],
    read: Callable[[Any, int, int], NDArray[np.uint8]],
    corners: Corners,
    workers: int,
    on_tile: OnTile,
) -> None:
    """Split the corners among the workers, each a thread with its own handle."""

    def some(rows: NDArray[np.intp]) -> None:
        with open_handle() as handle:
            for row in rows.tolist():
                on_tile(row, read(handle, *corners[row].tolist()))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(some, np.array_split(np.arange(len(corners)), workers)))


def _openslide(path: Path, corners: Corners, size: int, workers: int, on_tile: OnTile) -> None:
    openslide = import_module("openslide")

    def read(handle: Any, x: int, y: int) -> NDArray[np.uint8]:
        return np.asarray(handle.read_region((x, y), 0, (size, size)))[..., :3]

    _in_threads(lambda: openslide.OpenSlide(path), read, corners, workers, on_tile)


def _tifffile_zarr(path: Path, corners: Corners, size: int, workers: int, on_tile: OnTile) -> None:
    tifffile, zarr = import_module("tifffile"), import_module("zarr")

    class Handle(ExitStack):
        def __enter__(self) -> Any:
            tif = self.enter_context(tifffile.TiffFile(path))
            return zarr.open_array(self.enter_context(tif.series[0].aszarr(level=0)), mode="r")

    def read(handle: Any, x: int, y: int) -> NDArray[np.uint8]:
        return np.asarray(handle[y : y + size, x : x + size])

    _in_threads(Handle, read, corners, workers, on_tile)


def _tiffslide(path: Path, corners: Corners, size: int, workers: int, on_tile: OnTile) -> None:
    tiffslide = import_module("tiffslide")

    def read(handle: Any, x: int, y: int) -> NDArray[np.uint8]:
        return np.asarray(handle.read_region((x, y), 0, (size, size), as_array=True))

    _in_threads(lambda: tiffslide.TiffSlide(path), read, corners, workers, on_tile)


def _pyvips(path: Path, corners: Corners, size: int, workers: int, on_tile: OnTile) -> None:
    pyvips = import_module("pyvips")

    class Handle(ExitStack):
        def __enter__(self) -> Any:
            return pyvips.Region.new(pyvips.Image.new_from_file(str(path), access="random"))

    def read(handle: Any, x: int, y: int) -> NDArray[np.uint8]:
        pixels = np.frombuffer(handle.fetch(x, y, size, size), np.uint8)
        return pixels.reshape(size, size, -1)[..., :3]

    _in_threads(Handle, read, corners, workers, on_tile)


def _cucim(path: Path, corners: Corners, size: int, workers: int, on_tile: OnTile) -> None:
    cucim = import_module("cucim")
    # The cache belongs to the process: reset it, so that no run profits from the one before.
    cucim.CuImage.cache("nocache")
    cucim.CuImage.cache("per_process", memory_capacity=CUCIM_CACHE_MIB)

    def read(handle: Any, x: int, y: int) -> NDArray[np.uint8]:
        return np.asarray(handle.read_region((x, y), (size, size), 0))[..., :3]

    _in_threads(lambda: nullcontext(cucim.CuImage(str(path))), read, corners, workers, on_tile)


READERS: dict[str, tuple[str, Reader]] = {
    "mclst": ("numpy", _mclst),
    "OpenSlide": ("openslide", _openslide),
    "tifffile + zarr": ("zarr", _tifffile_zarr),
    "tiffslide": ("tiffslide", _tiffslide),
    "pyvips": ("pyvips", _pyvips),
    "cuCIM": ("cucim", _cucim),
}
"""Module that must be installed, and reader, by name; mclst first."""

MAY_CRASH = {"cuCIM"}
"""Readers that crash on some slides (deflate tiles); these are first tried in a process of their own."""


def survives(name: str, path: Path, size: int) -> bool:
    """Whether a reader can read the first tile of a slide in a process of its own."""
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from mclst.benchmarks.reading.readers import READERS\n"
        "read, corners = READERS[sys.argv[1]][1], np.zeros((1, 2), np.int64)\n"
        "read(Path(sys.argv[2]), corners, int(sys.argv[3]), 1, lambda *tile: None)"
    )
    command = [sys.executable, "-c", code, name, str(path), str(size)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
