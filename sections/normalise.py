"""Counts to the expression a model works with.

Both formulas are the published mclSTExp preprocessing: scprep's `library_size_normalize` to 10,000, which divides
rows by their sums, followed by log10(x + 1). Its dataset hands over spots x genes, which normalises each spot; its
scripts that write the averaged matrices hand over genes x spots, which normalises each gene over its section.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESCALE = 10_000.0


def spot_wise(counts: ArrayLike) -> NDArray[np.float32]:
    """Give log10(10,000 · c / (sum of the spot's counts) + 1): counts [n, G] to float32 [n, G].

    A spot without counts stays 0. Source: library_size_normalize (scprep) on spots x genes, as in mclSTExp's dataset.
    Raises ValueError naming row and column where a count is not finite or is negative.
    """
    return _normalised(counts, axis=1)


def gene_wise(counts: ArrayLike) -> NDArray[np.float32]:
    """Give log10(10,000 · c / (sum of the gene over the section's spots) + 1): counts [n, G] to float32 [n, G].

    The n rows are one whole section, for a gene's level depends on all of them. A gene without counts stays 0.
    Source: library_size_normalize (scprep) on genes x spots, as in mclSTExp's scripts for the averaged matrices.
    Raises ValueError naming row and column where a count is not finite or is negative.
    """
    return _normalised(counts, axis=0)


def unchanged(counts: ArrayLike) -> NDArray[np.float32]:
    """Give the values as they are: [n, G] to float32 [n, G]; ValueError where one is not finite."""
    values = _matrix(counts)
    _require(values, np.isfinite(values), "is not finite")
    return values.astype(np.float32)


NORMALISATIONS: dict[str, Callable[[ArrayLike], NDArray[np.float32]]] = {
    "spot-wise": spot_wise,
    "gene-wise": gene_wise,
    "none": unchanged,
}


def _normalised(counts: ArrayLike, axis: int) -> NDArray[np.float32]:
    values = _matrix(counts)
    _require(values, np.isfinite(values) & (values >= 0), "is not a finite count, 0 or more")
    total = values.sum(axis=axis, keepdims=True)
    share = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    logged: NDArray[np.float64] = np.log10(RESCALE * share + 1)
    return logged.astype(np.float32)


def _matrix(counts: Any) -> NDArray[np.float64]:
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"counts have shape {values.shape}; give [spots, genes]")
    return values


def _require(values: NDArray[np.float64], good: NDArray[np.bool_], what: str) -> None:
    if not good.all():
        row, column = np.argwhere(~good)[0].tolist()
        raise ValueError(
            f"row {row + 1}, column {column + 1} of the counts is {values[row, column]}, which {what}"
        )
