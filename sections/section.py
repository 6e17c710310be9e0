"""The two things read from disk here: a table of spots, and a measured section."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spots:
    """The places of a spots table, in the table's order.

    path: the file.
    variant: what it was recognised as, for people: "legacy ST selection", "Space Ranger 2", …
    id: str [n], unique: the barcode, for legacy ST `XxY` of the array coordinates, else the row number.
    xy_px: float64 [n, 2], centre (x, y) in level-0 px, y down.
    array_xy: int64 [n, 2] array coordinates or None (legacy ST: x, y; Visium: array_col, array_row).
    row: int64 [n], line of the file (1 is the first line) each spot stands on, for messages.
    table: the table's own columns [n rows], column names as in the file.
    spot_diameter_px: level-0 px, where the file or its scalefactors say so, else None.
    coordinates: one phrase for the summary: which columns were taken as level-0 pixels.
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

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True)
class Section:
    """A measured tissue section; rows in file order.

    name: "C4".
    genes: str [g], in file order; a Visium symbol may stand twice, and match_genes refuses it where it is wanted.
    spot: str [n], unique.
    counts: float32 CSR [n, g], raw counts (or whatever values the file holds), finite and ≥ 0 unless
        `normalized` was said of them.
    array_xy: int64 [n, 2] array coordinates (legacy ST: x, y; Visium: array_col, array_row), or None.
    xy_px: float64 [n, 2] level-0 px (x, y) of the spot's centre, NaN where the file has none, or None.
    image: the section's own H&E image beside it, where there is one.
    counts_from: what of the file was taken: "counts", or for AnnData "layers['counts']" or "X".
    """

    name: str
    path: Path
    genes: NDArray[np.str_]
    spot: NDArray[np.str_]
    counts: sp.csr_matrix
    array_xy: NDArray[np.int64] | None
    xy_px: NDArray[np.float64] | None
    image: Path | None
    counts_from: str = "counts"

    def __len__(self) -> int:
        return len(self.spot)

    @property
    def total(self) -> NDArray[np.float64]:
        """Counts of each spot over all measured genes, float64 [n]."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.float64)).ravel()
