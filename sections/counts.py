"""Checks shared by all readers: counts as finite, non-negative float32 CSR, and unique spots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mclst.sections.errors import SectionError
from mclst.sections.hdf5 import check_sparse

VALUES_AT_ONCE = 1 << 22


def counts_csr(matrix: Any, path: Path, spot: NDArray[np.str_], genes: NDArray[np.str_]) -> sp.csr_matrix:
    """Convert spots x genes, dense or sparse, to float32 CSR [n, g] with sorted columns and no stored zeros.

    The arrays of a sparse `matrix` may be taken over and changed.

    Raises SectionError if the matrix is damaged, has another shape than [len(spot), len(genes)], or holds a
    value that is not finite, negative or too large for float32; the message names its file, spot and gene.
    """
    if matrix.shape != (len(spot), len(genes)):
        raise SectionError(
            f"{path}: the counts are {matrix.shape[0]} x {matrix.shape[1]} for {len(spot)} spots and "
            f"{len(genes)} genes; the files do not belong together"
        )
    try:
        check_sparse(matrix)  # before anything is done with it
        wide = sp.csr_matrix(matrix)
        wide.check_format(full_check=True)
    except (ValueError, TypeError) as error:
        raise SectionError(f"{path}: the counts matrix is damaged ({error})") from error
    with np.errstate(over="ignore", invalid="ignore"):
        values = wide.data.astype(np.float32, copy=False)
    invalid = ~(np.isfinite(values) & (values >= 0))
    if invalid.any():
        first = int(np.argmax(invalid))
        row, gene = int(np.searchsorted(wide.indptr, first, side="right")) - 1, int(wide.indices[first])
        raise SectionError(
            f"{path}: spot {str(spot[row])!r} (row {row + 1}), gene {str(genes[gene])!r} is "
            f"{wide.data[first]}; counts are finite numbers, 0 or more"
        )
    counts = sp.csr_matrix((values, wide.indices, wide.indptr), shape=wide.shape)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def are_whole(values: Any) -> bool:
    """Whether all numbers of a matrix, dense or sparse, are whole; in blocks, since it may be large."""
    stored: Any = values
    numbers = np.asarray(stored.data if sp.issparse(values) else stored).reshape(-1)
    blocks = (numbers[at : at + VALUES_AT_ONCE] for at in range(0, len(numbers), VALUES_AT_ONCE))
    return all(np.array_equal(block, np.rint(block)) for block in blocks)


def require_unique_spots(spot: NDArray[np.str_], path: Path) -> None:
    """Raise SectionError if a spot appears twice (both rows are named) or there are no spots."""
    if not len(spot):
        raise SectionError(f"{path}: the section has no spots")
    names, occurrences = np.unique(spot, return_counts=True)
    if (occurrences > 1).any():
        name = names[np.argmax(occurrences > 1)]
        rows = np.flatnonzero(spot == name)
        raise SectionError(
            f"{path}: spot {str(name)!r} is in rows {rows[0] + 1} and {rows[1] + 1}; a spot may appear once"
        )
