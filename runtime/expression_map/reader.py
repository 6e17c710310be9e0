"""A finished map, as pictures, pages and other files are made from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.morans_i import morans_i, most_structured_first


@dataclass(frozen=True)
class Map:
    """An expression map with its tissue image.

    title: the slide's name. genes: [G]. expression: float32 [n, G], an array or an HDF5 dataset, a row NaN where its
    tile was unreadable. table: `obs`, [n], indexed by the spots' names. xy_px: float64 [n, 2], spot centres, level-0 px.
    image: uint8 [h, w, 3]; image_scale: its px per level-0 px. spot_diameter_px: level-0 px; of a grid, its stride.
    mpp: µm per level-0 px, or None. told: what made the map, nested; empty for a map of others.
    """

    path: Path
    title: str
    genes: tuple[str, ...]
    expression: NDArray[np.float32] | h5py.Dataset
    table: pd.DataFrame
    xy_px: NDArray[np.float64]
    image: NDArray[np.uint8]
    image_scale: float
    spot_diameter_px: float
    mpp: float | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spots(self) -> list[str]:
        """Names of the spots [n]."""
        return [str(name) for name in self.table.index]

    @property
    def on_grid(self) -> bool:
        """Whether the places are those of a dense grid, whose squares close up."""
        return "grid_um" in self.told.get("settings", {})

    @cached_property
    def morans_i(self) -> NDArray[np.float64]:
        """Moran's I of each gene, float64 [G], NaN where it has none."""
        return morans_i(self.expression, self.xy_px)

    @cached_property
    def order(self) -> list[int]:
        """Places of the genes, the most spatially structured first."""
        return [int(place) for place in most_structured_first(self.morans_i)]

    def places(self, genes: Sequence[str]) -> list[int]:
        """Places of named genes; InputError naming the first that the map does not have."""
        place = {gene: number for number, gene in enumerate(self.genes)}
        for gene in genes:
            if gene not in place:
                near = [other for other in self.genes if other.casefold() == gene.casefold()]
                hint = f"; it has {near[0]}" if near else ""
                raise InputError(f"{self.title} has no gene {gene}{hint}; name genes of the map")
        return [place[gene] for gene in genes]


@contextmanager
def open_map(path: Path) -> Iterator[Map]:
    """Open a map of mclst-infer, or any `.h5ad` of one slide as scanpy has them; its expression is read as needed.

    Raises InputError where the file is none, or has no spots, or not one tissue image.
    """
    try:
        # Without HDF5's own lock: the map may be one that its writer, this process, still holds.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise InputError(f"{path} is not a map with one tissue image ({error}); give another") from error
    with file:
        yield _read(path, file)


def _read(path: Path, file: h5py.File) -> Map:
    read = anndata.io.read_elem
    try:
        ((title, slide),) = read(file["uns/spatial"]).items()
        told = read(file["uns/mclst"]) if "uns/mclst" in file else {}
        table, xy_px = read(file["obs"]), np.asarray(read(file["obsm/spatial"]), np.float64)
        matrix = file["X"] if isinstance(file["X"], h5py.Dataset) else read(file["X"]).toarray()
        genes = tuple(str(gene) for gene in read(file["var"]).index)
        if matrix.shape != (len(table), len(genes)) or xy_px.shape != (len(table), 2):
            raise ValueError(f"X is {matrix.shape} for {len(table)} spots and {len(genes)} genes")
        if not len(table) or not len(genes):
            raise ValueError("it has no spots or no genes")
        for what, names in (("spot", table.index), ("gene", pd.Index(genes))):
            if not names.is_unique:
                raise ValueError(f"a {what} stands there twice")
        if not np.isfinite(xy_px).all():
            raise ValueError("a spot has no place")
        return Map(
            path=path,
            title=str(title),
            genes=genes,
            expression=matrix,
            table=table,
            xy_px=xy_px,
            image=_as_bytes(np.asarray(slide["images"]["hires"])),
            image_scale=float(slide["scalefactors"]["tissue_hires_scalef"]),
            spot_diameter_px=float(slide["scalefactors"]["spot_diameter_fullres"]),
            mpp=_mpp(told),
            told=told,
        )
    except KeyError as error:
        raise InputError(f"{path} has no {error}; give a map with its spots and one tissue image") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a map with one tissue image ({error}); give another") from error


def _as_bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Space Ranger's image as scanpy keeps it, float 0 … 1, or as it is; without a fourth channel."""
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(f"its tissue image is {image.shape}, not [h, w, 3]")
    if image.dtype.kind == "f":
        image = np.round(np.clip(image, 0, 1) * 255)
    return np.ascontiguousarray(image[..., :3], np.uint8)


def _mpp(told: Mapping[str, Any]) -> float | None:
    mpp = told.get("slide", {}).get("mpp")
    return None if mpp is None else float(mpp)
