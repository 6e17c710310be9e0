"""Counts as every reader hands them on: float32 CSR, finite, not negative."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mclst.sections.errors import SectionError


def counts_csr(matrix: Any, path: Path, spot: NDArray[np.str_], genes: NDArray[np.str_]) -> sp.csr_matrix:
    """Give spots x genes, dense or sparse, as float32 CSR [n, g] with sorted columns and no stored zeros.

    Raises SectionError naming file, spot and gene of the first value that is not finite, is negative, or is too
    large for float32, and where the matrix is damaged or is not [len(spot), len(genes)].
    """
    if matrix.shape != (len(spot), len(genes)):
        raise SectionError(
            f"{path}: the counts are {matrix.shape[0]} x {matrix.shape[1]} for {len(spot)} spots and {len(genes)} genes; "
            "the files do not belong together"
        )
    try:
        wide = sp.csr_matrix(matrix)
        wide.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        raise SectionError(f"{path}: the counts matrix is damaged ({error})") from error
    with np.errstate(over="ignore", invalid="ignore"):
        values = wide.data.astype(np.float32)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        place = int(np.argmax(wrong))
        row, gene = int(np.searchsorted(wide.indptr, place, side="right")) - 1, int(wide.indices[place])
        raise SectionError(
            f"{path}: spot {str(spot[row])!r} (row {row + 1}), gene {str(genes[gene])!r} is {wide.data[place]}; "
            "counts are finite numbers, 0 or more"
        )
    counts = sp.csr_matrix((values, wide.indices.copy(), wide.indptr.copy()), shape=wide.shape)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def require_unique_spots(spot: NDArray[np.str_], path: Path) -> None:
    """Raise SectionError naming the rows where a spot stands twice, or that there are no spots."""
    if not len(spot):
        raise SectionError(f"{path}: the section has no spots")
    names, times = np.unique(spot, return_counts=True)
    if (times > 1).any():
        name = names[np.argmax(times > 1)]
        rows = np.flatnonzero(spot == name)
        raise SectionError(
            f"{path}: spot {str(name)!r} stands in rows {rows[0] + 1} and {rows[1] + 1}; a spot may appear once"
        )
