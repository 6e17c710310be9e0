"""Data classes of a spot table and a measured section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from mclst.sections.columns import Columns
from mclst.sections.location import SlideLocation

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp


@dataclass(frozen=True)
class Spots:
    """Spots of a table, in the table's order.

    Attributes
    ----------
    path : Path
        The file.
    variant : str
        Recognized format, such as "legacy ST selection" or "Space Ranger 2".
    id : ndarray of str, shape (n,)
        Unique: the barcode, `XxY` of the array coordinates for legacy ST, else the row number.
    xy_px : ndarray of float64, shape (n, 2)
        Center (x, y) in level-0 px, y down.
    array_xy : ndarray of int64, shape (n, 2), or None
        Array coordinates: x, y for legacy ST; array_col, array_row for Visium.
    row : ndarray of int64, shape (n,)
        Line of the file, from 1, for messages.
    columns : Columns
        The file's columns, rows numbered from 0.
    spot_diameter_px : float or None
        Level-0 px, if the file or its scalefactors give it.
    coordinates : str
        Which columns were used as level-0 pixels, for the summary.
    mpp : float or None
        µm per level-0 px, as the files say; None if they do not.
    """

    path: Path
    variant: str
    id: NDArray[np.str_]
    xy_px: NDArray[np.float64]
    array_xy: NDArray[np.int64] | None
    row: NDArray[np.int64]
    columns: Columns
    spot_diameter_px: float | None
    coordinates: str
    mpp: float | None = None

    def __len__(self) -> int:
        return len(self.id)

    @property
    def table(self) -> pd.DataFrame:
        """The file's columns, DataFrame [n rows]."""
        return self.columns.frame

    def take(self, rows: NDArray[Any]) -> Self:
        """Select spots by their numbers [m], or by a mask [n]."""
        kept = self.id[rows]
        columns = {name: lambda name=name: self.columns[name][rows] for name in self.columns}
        return replace(
            self,
            id=kept,
            xy_px=self.xy_px[rows],
            array_xy=None if self.array_xy is None else self.array_xy[rows],
            row=self.row[rows],
            columns=Columns(range(len(kept)), columns),
        )


@dataclass(frozen=True)
class Section:
    """A measured tissue section; rows in file order.

    Attributes
    ----------
    name : str
        For example "C4".
    path : Path
        File or folder of the counts.
    genes : ndarray of str, shape (g,)
        In file order. A Visium symbol may appear twice; `match_genes` refuses only symbols it needs.
    spot : ndarray of str, shape (n,)
        Unique.
    counts : csr_matrix of float32, shape (n, g)
        Finite and non-negative; raw counts, or whatever values the file holds.
    array_xy : ndarray of int64, shape (n, 2), or None
        Array coordinates: x, y for legacy ST; array_col, array_row for Visium.
    xy_px : ndarray of float64, shape (n, 2), or None
        Spot center (x, y) in level-0 px, NaN where the file has none.
    image : Path, RemoteLocation or None
        The section's H&E image.
    counts_from : str
        Source of the counts: "counts", or "layers['counts']" or "X" of an AnnData.
    image_scale : float
        Px of `image` per full-resolution px; below 1 for a downscaled picture, to which `xy_px` is scaled.
    format : str
        See `SectionSource`.
    synonyms : mapping of str to int
        Other names of genes → column of `counts`: Ensembl ids without version, symbols, aliases.
    mpp : float or None
        µm per px of `image`, as the section's own files say; None if they do not.
    """

    name: str
    path: Path
    genes: NDArray[np.str_]
    spot: NDArray[np.str_]
    counts: sp.csr_matrix
    array_xy: NDArray[np.int64] | None
    xy_px: NDArray[np.float64] | None
    image: SlideLocation | None
    counts_from: str = "counts"
    image_scale: float = 1.0
    format: str = ""
    synonyms: Mapping[str, int] = field(default_factory=dict)
    mpp: float | None = None

    def __len__(self) -> int:
        return len(self.spot)

    @property
    def total(self) -> NDArray[np.float64]:
        """Counts of each spot over all measured genes, float64 [n]."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.float64)).ravel()
