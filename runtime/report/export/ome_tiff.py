"""Export genes of a dense map as a pyramidal OME-TIFF: float32, one channel per gene, NaN off the tissue.

QuPath, napari and Fiji open it. Pixel (column, row) is that tile of the grid and PhysicalSizeX and Y
its width and height by the slide's scale, so the image aligns with the slide by physical size from the upper
left corner.
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
MIN_LEVEL_PX = 256
BLOCK_BYTES = 64 << 20


def find_genes(names: Sequence[str], genes: Sequence[str]) -> list[int]:
    """Return the indices of named genes among the bundle's; InputError if one is missing or named twice."""
    index = {gene: number for number, gene in enumerate(genes)}
    for gene in names:
        if gene not in index:
            similar = [other for other in genes if other.casefold() == gene.casefold()]
            hint = f"; the bundle has {similar[0]}" if similar else ""
            raise InputError(f"--genes names {gene}, which this bundle does not predict{hint}")
    if len(set(names)) != len(names):
        raise InputError("--genes names a gene twice; name each once")
    return [index[gene] for gene in names]


def write_ome_tiff(
    map_path: Path, path: Path, grid: Grid, genes: Sequence[str], columns: Sequence[int]
) -> None:
    """Write genes of a map over a grid as an OME-TIFF, atomically.

    Parameters
    ----------
    map_path : Path
        The `.h5ad`; its X is float32 [spots of the grid, G].
    path : Path
    grid : Grid
    genes : sequence of str
        Names of the channels.
    columns : sequence of int
        Their columns in X.

    Raises
    ------
    OutputError
        If the file cannot be written.

    Notes
    -----
    Each coarser level is the mean over 2 x 2 pixels without NaN.
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
        "PhysicalSizeX": grid.side_um[0],
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": grid.side_um[1],
        "PhysicalSizeYUnit": "µm",
    }
    with atomic_file(path) as part:
        planes = _planes(map_path, grid, array, columns)
        levels = [planes]
        while max(levels[-1].shape[1:]) > MIN_LEVEL_PX:
            levels.append(downsample(levels[-1]))
        with tifffile.TiffWriter(part, ome=True, bigtiff=True) as tif:
            tif.write(planes, subifds=len(levels) - 1, metadata=metadata, **options)
            for level in levels[1:]:
                tif.write(level, subfiletype=1, **options)


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


def downsample(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average 2 x 2 pixels without NaN: float32 [c, h, w] to [c, ⌈h/2⌉, ⌈w/2⌉]."""
    _, height, width = planes.shape
    even = np.pad(planes, ((0, 0), (0, height % 2), (0, width % 2)), constant_values=np.nan)
    quarters = np.stack([even[:, y::2, x::2] for y in (0, 1) for x in (0, 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # mean of an empty slice: NaN is intended
        return np.asarray(np.nanmean(quarters, axis=0, dtype=np.float64), np.float32)
