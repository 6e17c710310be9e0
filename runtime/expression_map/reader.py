"""Read a finished map, to draw it or convert it to other files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.errors import InputError
from mclst.runtime.expression_map.distinct import distinct_genes
from mclst.runtime.expression_map.layers import LAYERS
from mclst.runtime.expression_map.morans_i import morans_i, sort_by_morans_i
from mclst.sections.columns import Columns
from mclst.sections.errors import pass_out_of_memory
from mclst.sections.hdf5 import (
    MAX_METADATA_BYTES,
    check_hdf5,
    max_matrix_bytes,
    read_frame,
    read_limited,
)

if TYPE_CHECKING:
    import pandas as pd

MAX_IMAGE_BYTES = 512 << 20
MAX_IN_MEMORY_BYTES = 64 << 20
"""Expression up to this size is read at once."""


@dataclass(frozen=True)
class Map:
    """An expression map with its tissue image.

    Attributes
    ----------
    title : str
        The slide's name.
    genes : tuple of str [G]
    expression : float32 [n, G]
        An array or an HDF5 dataset; the row of an unreadable tile is NaN.
    obs : Columns [n rows]
        Of the spots, by their names.
    xy_px : float64 [n, 2]
        Spot centers, level-0 px.
    image : uint8 [h, w, 3]
        The tissue, RGB.
    image_scale : float
        Image pixels per level-0 px.
    spot_diameter_px : float
        Level-0 px; of a grid, its stride.
    mpp : float or None
        µm per level-0 px.
    provenance : mapping
        How mclst made the map, nested (`uns["mclst"]`); empty for a map of other software.
    var : Columns [G rows]
        Of the genes, by their names.
    layers : mapping of str to float32 [n, G]
        The layers `low` and `high`, if the map has both.
    """

    path: Path
    title: str
    genes: tuple[str, ...]
    expression: NDArray[np.float32] | h5py.Dataset
    obs: Columns
    xy_px: NDArray[np.float64]
    image: NDArray[np.uint8]
    image_scale: float
    spot_diameter_px: float
    mpp: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    var: Columns = field(default_factory=lambda: Columns(range(0)))
    layers: Mapping[str, h5py.Dataset] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """`obs` as a DataFrame."""
        return self.obs.frame

    @property
    def gene_table(self) -> pd.DataFrame:
        """`var` as a DataFrame."""
        return self.var.frame

    @property
    def spots(self) -> list[str]:
        """Names of the spots [n]."""
        return [str(name) for name in self.obs.index]

    @property
    def on_grid(self) -> bool:
        """Whether the spots form a dense grid of adjoining squares."""
        return "grid_um" in self.provenance.get("settings", {})

    @cached_property
    def morans_i(self) -> NDArray[np.float64]:
        """Moran's I of each gene, float64 [G]; NaN for a constant gene."""
        return morans_i(self.expression, self.xy_px)

    @property
    def expected_r(self) -> NDArray[np.float64] | None:
        """Expected r of each gene in a new section, float64 [G]; None if the map is not calibrated."""
        return self._of_genes("expected_r", np.float64)

    @property
    def reliable(self) -> NDArray[np.bool_] | None:
        """Bool [G]: genes called reliable; None if the map is not calibrated."""
        return None if self.expected_r is None else self._of_genes("reliable", np.bool_)

    def _of_genes(self, name: str, kind: type[Any]) -> NDArray[Any] | None:
        if name not in self.var or self.var[name].dtype.kind not in "fb":
            return None
        return self.var[name].astype(kind)

    def of_spots(self, name: str) -> NDArray[np.float64] | None:
        """A column of `obs`, float64 [n]; None if it is missing or holds no numbers."""
        column = self.obs.get(name)
        return None if column is None or column.dtype.kind not in "biuf" else column.astype(np.float64)

    @property
    def outside(self) -> NDArray[np.bool_]:
        """Bool [n]: spots unlike what the model was calibrated on."""
        column = self.obs.get("outside")
        if column is None or column.dtype.kind != "b":
            return np.zeros(len(self.xy_px), np.bool_)
        return column

    @cached_property
    def order(self) -> list[int]:
        """Indices of the genes: reliable ones first, by expected r; if not calibrated, by Moran's I."""
        by_structure = sort_by_morans_i(self.morans_i)
        expected, reliable = self.expected_r, self.reliable
        if expected is not None and reliable is not None:
            known = np.nan_to_num(expected[by_structure], nan=-2.0)
            by_structure = by_structure[np.lexsort((-known, ~reliable[by_structure]))]
        return [int(gene) for gene in by_structure]

    def distinct(self, count: int) -> list[tuple[int, float]]:
        """At most `count` structured genes that show different patterns: their index, and largest |r| before.

        Of reliable ones, if there are any; genes that repeat a pattern are left out. See `distinct_genes`.
        """
        ranked = [int(gene) for gene in sort_by_morans_i(self.morans_i)]
        reliable = self.reliable
        if reliable is not None and reliable.any():
            ranked = [gene for gene in ranked if reliable[gene]]
        varying = [gene for gene in ranked if not np.isnan(self.morans_i[gene])]
        return distinct_genes(self.expression, varying, count) or [(gene, 0.0) for gene in ranked[:count]]

    def structured(self, count: int) -> tuple[tuple[str, float], ...]:
        """Names and Moran's I of the genes of `distinct`."""
        return tuple((self.genes[gene], float(self.morans_i[gene])) for gene, _ in self.distinct(count))

    def gene_indices(self, genes: Sequence[str]) -> list[int]:
        """Indices of named genes; InputError names the first that the map lacks."""
        index = {gene: number for number, gene in enumerate(self.genes)}
        for gene in genes:
            if gene not in index:
                similar = [other for other in self.genes if other.casefold() == gene.casefold()]
                hint = f"; it has {similar[0]}" if similar else ""
                raise InputError(f"{self.title} has no gene {gene}{hint}; name genes of the map")
        return [index[gene] for gene in genes]


@contextmanager
def open_map(path: Path) -> Iterator[Map]:
    """Open a map of mclst-infer, or any `.h5ad` of one slide in scanpy's layout; a context manager.

    Parameters
    ----------
    path : Path
        The `.h5ad`.

    Yields
    ------
    Map
        Its expression stays on disk unless X is sparse, and is valid until the context ends.

    Raises
    ------
    InputError
        If the file is no map, has no spots, or does not have exactly one tissue image.
    """
    try:
        # Without HDF5's file lock: this process may still hold the map it is writing.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise InputError(f"{path} is not a map with one tissue image ({error}); give another") from error
    with file:
        yield _read(path, file)


def _read(path: Path, file: h5py.File) -> Map:
    try:
        check_hdf5(file)
        ((title, slide),) = _member(file, "uns/spatial").items()
        scales = read_limited(slide, "scalefactors", MAX_METADATA_BYTES)
        provenance = read_limited(file, "uns/mclst", MAX_METADATA_BYTES) if "uns/mclst" in file else {}
        table = read_frame(file, "obs")
        gene_table = read_frame(file, "var")
        genes = tuple(str(gene) for gene in gene_table.index)
        size = len(table), len(genes)
        xy_px = np.asarray(read_limited(file, "obsm/spatial", max_matrix_bytes(len(table), 2)), np.float64)
        check_provenance(provenance)
        matrix = _member(file, "X")
        if not isinstance(matrix, h5py.Dataset):
            matrix = read_limited(file, "X", max_matrix_bytes(*size))
        if matrix.shape != size:
            raise ValueError(f"X is {matrix.shape} for {len(table)} spots and {len(genes)} genes")
        if xy_px.shape != (len(table), 2):
            raise ValueError(f"obsm['spatial'] is {xy_px.shape} for x, y of {len(table)} spots")
        if not len(table) or not len(genes):
            raise ValueError("it has no spots or no genes")
        for kind, unique in (("spot", table.index.is_unique), ("gene", len(set(genes)) == len(genes))):
            if not unique:
                raise ValueError(f"a {kind} occurs twice")
        if not np.isfinite(xy_px).all():
            raise ValueError("a spot has no position")
        if not isinstance(matrix, h5py.Dataset):
            matrix = matrix.toarray()
        elif matrix.dtype.kind == "f":
            matrix = load_small(matrix)
        image = _as_bytes(np.asarray(read_limited(slide, "images/hires", MAX_IMAGE_BYTES)))
        return Map(
            path=path,
            title=str(title),
            genes=genes,
            expression=matrix,
            obs=Columns.of(table),
            xy_px=xy_px,
            image=image,
            image_scale=_length("tissue_hires_scalef", scales["tissue_hires_scalef"]),
            spot_diameter_px=_length("spot_diameter_fullres", scales["spot_diameter_fullres"], zero=True),
            mpp=recorded_mpp(provenance),
            provenance=provenance,
            var=Columns.of(gene_table),
            layers=interval_layers(file, size),
        )
    except KeyError as error:
        raise InputError(f"{path} has no {error}; give a map with its spots and one tissue image") from error
    except Exception as error:  # on damaged bytes h5py and anndata raise nearly every type
        pass_out_of_memory(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a map with one tissue image ({reason}); give another") from error


def _member(file: h5py.File, path: str) -> h5py.Group | h5py.Dataset:
    if path not in file:
        raise KeyError(path)
    return file[path]


def load_small(matrix: h5py.Dataset) -> h5py.Dataset | NDArray[Any]:
    """Read a matrix of up to `MAX_IN_MEMORY_BYTES`, for genes are taken one by one, each from all rows."""
    return matrix[:] if matrix.dtype.itemsize * matrix.size <= MAX_IN_MEMORY_BYTES else matrix


def interval_layers(file: h5py.File, size: tuple[int, int]) -> dict[str, h5py.Dataset]:
    """The layers `low` and `high`, unless one is missing or is no matrix of the map's size."""
    layers = {name: file.get(f"layers/{name}") for name in LAYERS}
    fine = all(isinstance(layer, h5py.Dataset) and layer.shape == size for layer in layers.values())
    return layers if fine else {}


def check_provenance(provenance: Mapping[str, Any]) -> None:
    """Raise TypeError if what a map records of its origin has not the form that is read from it."""
    for name in ("bundle", "settings", "slide", "trust"):
        if not isinstance(provenance.get(name, {}), Mapping):
            raise TypeError(f"uns['mclst'][{name!r}] is {provenance[name]!r}, not named values")
    share = provenance.get("trust", {}).get("outside_share", 0.0)
    if not isinstance(share, int | float | np.number):
        raise TypeError(f"uns['mclst']['trust']['outside_share'] is {share!r}, not a number")


def _length(name: str, value: Any, *, zero: bool = False) -> float:
    length = float(value)
    if not math.isfinite(length) or length < 0 or (length == 0 and not zero):
        raise ValueError(f"its {name} is {length:g}")
    return length


def _as_bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The image as uint8 RGB; scanpy stores Space Ranger's as float 0 to 1, others as 0 to 255 or uint16."""
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(f"its tissue image is {image.shape}, not [h, w, 3]")
    if image.dtype != np.uint8:
        highest = float(image.max(initial=0))
        if image.dtype.kind == "f" and highest <= 1:
            image = np.round(np.clip(image, 0, 1) * 255)
        elif image.dtype == np.uint16 and highest > 255:
            image = np.round(image / 257)
        elif not (image.min(initial=0) >= 0 and highest <= 255):
            raise ValueError(f"its tissue image has values up to {highest:g}, neither 0 to 1 nor 0 to 255")
    return np.ascontiguousarray(image[..., :3], np.uint8)


def recorded_mpp(provenance: Mapping[str, Any]) -> float | None:
    """µm per level-0 px as the run took it; None where a map does not say."""
    mpp = provenance.get("slide", {}).get("mpp")
    return None if mpp is None else _length("µm per pixel", mpp)
