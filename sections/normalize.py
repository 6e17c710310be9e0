"""Counts to the expression a model works with.

The first two formulas are the published mclSTExp preprocessing: scprep's `library_size_normalize` to 10,000, which divides
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


def median_log1p(counts: ArrayLike, total: ArrayLike | None = None) -> NDArray[np.float32]:
    """Give ln(median · c / (total of the spot) + 1): counts [n, G] to float32 [n, G].

    total: [n] counts of each spot over all measured genes, by default over the G given; median: of the totals above 0.
    A spot without counts stays 0. Source: scanpy's `normalize_total` and `log1p` as BLEEP's notebook applies them,
    section by section and before it chooses genes. Raises ValueError as the others do.
    """
    values = _counts(counts)
    totals = values.sum(axis=1) if total is None else np.asarray(total, np.float64)
    some = totals > 0
    scale = np.divide(
        np.median(totals[some]) if some.any() else 0.0, totals, out=np.zeros_like(totals), where=some
    )
    logged: NDArray[np.float64] = np.log1p(values * scale[:, None])
    return logged.astype(np.float32)


def log_share(
    counts: ArrayLike, total: ArrayLike | None = None, measured: int | None = None
) -> NDArray[np.float32]:
    """Give ln((1 + c) / (measured genes + total of the spot)): counts [n, G] to float32 [n, G].

    total: [n] counts of each spot over all measured genes, and measured: their number; by default those of the G given.
    Source: ST-Net's `--norm`, which counts all genes and predicts some. Raises ValueError as the others do.
    """
    values = _counts(counts)
    totals = values.sum(axis=1) if total is None else np.asarray(total, np.float64)
    share = (1 + values) / ((measured or values.shape[1]) + totals[:, None])
    logged: NDArray[np.float64] = np.log(share)
    return logged.astype(np.float32)


def unchanged(counts: ArrayLike) -> NDArray[np.float32]:
    """Give the values as they are: [n, G] to float32 [n, G]; ValueError where one is not finite."""
    values = _matrix(counts)
    _require(values, np.isfinite(values), "is not finite")
    return values.astype(np.float32)


NORMALIZATIONS: dict[str, Callable[[ArrayLike], NDArray[np.float32]]] = {
    "spot-wise": spot_wise,
    "gene-wise": gene_wise,
    "median-log1p": median_log1p,
    "log-share": log_share,
    "none": unchanged,
}


def normalize(
    kind: str, counts: ArrayLike, total: ArrayLike | None = None, measured: int | None = None
) -> NDArray[np.float32]:
    """Normalise a section's counts [n, G] by the formula `kind` of NORMALISATIONS: float32 [n, G].

    total, measured: [n] counts over all measured genes and their number, for a formula that asks for them.
    Raises ValueError as the formula does.
    """
    if kind == "median-log1p":
        return median_log1p(counts, total)
    if kind == "log-share":
        return log_share(counts, total, measured)
    return NORMALIZATIONS[kind](counts)


def _normalised(counts: ArrayLike, axis: int) -> NDArray[np.float32]:
    values = _counts(counts)
    total = values.sum(axis=axis, keepdims=True)
    share = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    logged: NDArray[np.float64] = np.log10(RESCALE * share + 1)
    return logged.astype(np.float32)


def _counts(counts: ArrayLike) -> NDArray[np.float64]:
    values = _matrix(counts)
    _require(values, np.isfinite(values) & (values >= 0), "is not a finite count, 0 or more")
    return values


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
