"""Data classes of a spot table and a measured section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mclst.sections.location import SlideLocation

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp


class _LateTable:
    """A DataFrame, or what makes it when it is first asked for: pandas takes 0.25 s to load."""

    def __get__(self, spots: object | None, owner: type) -> Any:
        if spots is None:
            return self
        table = spots.__dict__["table"]
        if callable(table):
            table = spots.__dict__["table"] = table()
        return table

    def __set__(self, spots: object, table: pd.DataFrame | Callable[[], pd.DataFrame]) -> None:
        spots.__dict__["table"] = table


def late_table(make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Return a table for `Spots` that `make` makes when it is first read."""
    return cast("pd.DataFrame", make)


def plain_table(columns: Mapping[str, NDArray[Any]], rows: int) -> pd.DataFrame:
    """Return columns [rows] as a DataFrame whose rows are numbered from 0."""
    import pandas as pd

    return pd.DataFrame(dict(columns), index=pd.RangeIndex(rows))


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
    table : DataFrame
        The file's columns, n rows; may be a `late_table`.
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
    table: pd.DataFrame
    spot_diameter_px: float | None
    coordinates: str
    mpp: float | None = None

    def __len__(self) -> int:
        return len(self.id)


Spots.table = _LateTable()  # type: ignore[assignment]


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
