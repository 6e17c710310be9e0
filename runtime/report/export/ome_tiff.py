"""Chosen genes of a dense map as a pyramidal OME-TIFF: float32, one channel per gene, NaN where nothing is known.

QuPath, napari and Fiji open it as it is. Pixel (column, row) is the grid's place of that name, so that its upper left
corner is the slide's, and PhysicalSizeX its stride: laid over the slide by physical size, the two coincide.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from mclst.runtime.atomic import atomic_file
from mclst.runtime.errors import InputError
from mclst.runtime.tiling.grid import Grid

TILE_PX = 256
SMALLEST_PX = 256
BLOCK_BYTES = 64 << 20


def check_genes(wanted: Sequence[str], genes: Sequence[str]) -> list[int]:
    """Places of `wanted` among the bundle's genes; InputError naming the first that is not there or stands twice."""
    place = {gene: number for number, gene in enumerate(genes)}
    for gene in wanted:
        if gene not in place:
            near = [other for other in genes if other.casefold() == gene.casefold()]
            hint = f"; the bundle has {near[0]}" if near else ""
            raise InputError(f"--genes names {gene}, which this bundle does not predict{hint}")
    if len(set(wanted)) != len(wanted):
        raise InputError("--genes names a gene twice; name each once")
    return [place[gene] for gene in wanted]


def write_ome_tiff(
    map_path: Path, out: Path, grid: Grid, genes: Sequence[str], columns: Sequence[int]
) -> Path:
    """Write genes of a map over a grid to the OME-TIFF `out`, whole or not at all; returns `out`.

    map_path: the `.h5ad`, its X float32 [spots of the grid, G]. genes: names of the channels; columns: theirs in X.
    Each coarser level is the mean over 2 x 2 pixels, of those that are known. Raises OutputError.
    """
    array = grid.spots.array_xy
    if array is None:
        raise ValueError("a grid's spots have array coordinates")
    options: dict[str, Any] = {
        "tile": (TILE_PX, TILE_PX),
        "compression": "zlib",
        "predictor": 3,
        "photometric": "minisblack",
    }
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": list(genes)},
        "PhysicalSizeX": grid.stride_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": grid.stride_um,
        "PhysicalSizeYUnit": "µm",
    }
    with atomic_file(out) as part:
        planes = _planes(map_path, grid, array, columns)
        levels = [planes]
        while max(levels[-1].shape[1:]) > SMALLEST_PX:
            levels.append(halved(levels[-1]))
        with tifffile.TiffWriter(part, ome=True, bigtiff=True) as tif:
            tif.write(planes, subifds=len(levels) - 1, metadata=metadata, **options)
            for level in levels[1:]:
                tif.write(level, subfiletype=1, **options)
    return out


def _planes(
    map_path: Path, grid: Grid, array: NDArray[np.int64], columns: Sequence[int]
) -> NDArray[np.float32]:
    planes = np.full((len(columns), grid.rows, grid.columns), np.nan, np.float32)
    with h5py.File(map_path, "r", locking=False) as file:
        matrix = file["X"]
        step = max(1, BLOCK_BYTES // (4 * matrix.shape[1]))
        for start in range(0, len(array), step):
            x, y = array[start : start + step].T
            planes[:, y, x] = matrix[start : start + step][:, columns].T
    return planes


def halved(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over 2 x 2 pixels of those that are not NaN: float32 [c, h, w] to [c, ⌈h/2⌉, ⌈w/2⌉]."""
    _, height, width = planes.shape
    even = np.pad(planes, ((0, 0), (0, height % 2), (0, width % 2)), constant_values=np.nan)
    quarters = np.stack([even[:, y::2, x::2] for y in (0, 1) for x in (0, 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, as it should be
        return np.asarray(np.nanmean(quarters, axis=0, dtype=np.float64), np.float32)
