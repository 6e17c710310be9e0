"""Normalizations of counts to expression.

`spot_wise` and `gene_wise` are the published mclSTExp preprocessing: scprep's `library_size_normalize` to
10,000, which divides rows by their sums, then log10(x + 1). mclSTExp's dataset passes spots x genes, which
normalizes each spot; its scripts for the averaged matrices pass genes x spots, which normalizes each gene
over its section.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESCALE = 10_000.0


def spot_wise(counts: ArrayLike) -> NDArray[np.float32]:
    """Normalize each spot: log10(10,000 · c / (sum of the spot's counts) + 1).

    Parameters
    ----------
    counts : array, shape (n, G)
        Finite and non-negative.

    Returns
    -------
    ndarray of float32, shape (n, G)
        A spot without counts stays 0.

    Raises
    ------
    ValueError
        If a count is negative or not finite; the message names row and column.

    Notes
    -----
    scprep's `library_size_normalize` on spots x genes, as in mclSTExp's dataset.
    """
    return _log_normalize(counts, axis=1)


def gene_wise(counts: ArrayLike) -> NDArray[np.float32]:
    """Normalize each gene over a section: log10(10,000 · c / (sum of the gene over all spots) + 1).

    Parameters
    ----------
    counts : array, shape (n, G)
        All spots of one section, since a gene's level depends on all of them.

    Returns
    -------
    ndarray of float32, shape (n, G)
        A gene without counts stays 0.

    Raises
    ------
    ValueError
        If a count is negative or not finite; the message names row and column.

    Notes
    -----
    scprep's `library_size_normalize` on genes x spots, as in mclSTExp's scripts for the averaged matrices.
    """
    return _log_normalize(counts, axis=0)


def median_log1p(counts: ArrayLike, total: ArrayLike | None = None) -> NDArray[np.float32]:
    """Normalize each spot to the section's median depth: ln(median · c / (total of the spot) + 1).

    Parameters
    ----------
    counts : array, shape (n, G)
        All spots of one section.
    total : array, shape (n,), optional
        Counts of each spot over all measured genes; default: over the G genes. The median is of totals above
        0.

    Returns
    -------
    ndarray of float32, shape (n, G)
        A spot without counts stays 0.

    Raises
    ------
    ValueError
        If a count is negative or not finite.

    Notes
    -----
    scanpy's `normalize_total` and `log1p` as BLEEP's notebook applies them: per section, before genes are
    selected.
    """
    values = _counts(counts)
    totals = values.sum(axis=1) if total is None else np.asarray(total, np.float64)
    nonzero = totals > 0
    median = np.median(totals[nonzero]) if nonzero.any() else 0.0
    scale = np.divide(median, totals, out=np.zeros_like(totals), where=nonzero)
    result: NDArray[np.float64] = np.log1p(values * scale[:, None])
    return result.astype(np.float32)


def log_share(
    counts: ArrayLike, total: ArrayLike | None = None, measured: int | None = None
) -> NDArray[np.float32]:
    """Log of each gene's share of its spot: ln((1 + c) / (measured genes + total of the spot)).

    Parameters
    ----------
    counts : array, shape (n, G)
    total : array, shape (n,), optional
        Counts of each spot over all measured genes; default: over the G genes.
    measured : int, optional
        Number of measured genes, given with `total`; default: G.

    Returns
    -------
    ndarray of float32, shape (n, G)

    Raises
    ------
    ValueError
        If a count is negative or not finite, or one of `total` and `measured` is missing.

    Notes
    -----
    ST-Net's `--norm`, which counts all genes and predicts some of them.
    """
    values = _counts(counts)
    if (total is None) != (measured is None):
        raise ValueError("log-share needs totals and the number of measured genes together; give both")
    totals = values.sum(axis=1) if total is None else np.asarray(total, np.float64)
    share = (1 + values) / ((measured or values.shape[1]) + totals[:, None])
    result: NDArray[np.float64] = np.log(share)
    return result.astype(np.float32)


def unchanged(counts: ArrayLike) -> NDArray[np.float32]:
    """Return values [n, G] as float32; ValueError if one is not finite."""
    values = _matrix(counts)
    _check(values, np.isfinite(values), "is not finite")
    return values.astype(np.float32)


NORMALIZATIONS: dict[str, Callable[[ArrayLike], NDArray[np.float32]]] = {
    "spot-wise": spot_wise,
    "gene-wise": gene_wise,
    "median-log1p": median_log1p,
    "log-share": log_share,
    "none": unchanged,
}
"""Functions by their name in NORMALIZATION_NAMES."""


def normalize(
    kind: str, counts: ArrayLike, total: ArrayLike | None, measured: int | None
) -> NDArray[np.float32]:
    """Normalize a section's counts by name.

    Parameters
    ----------
    kind : str
        One of NORMALIZATIONS.
    counts : array, shape (n, G)
    total, measured : array, shape (n,), and int, or both None
        Counts of each spot over all measured genes, and their number; used by "median-log1p" and "log-share".
        None: `counts` hold all measured genes.

    Returns
    -------
    ndarray of float32, shape (n, G)

    Raises
    ------
    ValueError
        If a count is negative or not finite, or as `log_share`.
    """
    if kind == "median-log1p":
        return median_log1p(counts, total)
    if kind == "log-share":
        return log_share(counts, total, measured)
    return NORMALIZATIONS[kind](counts)


def _log_normalize(counts: ArrayLike, axis: int) -> NDArray[np.float32]:
    values = _counts(counts)
    total = values.sum(axis=axis, keepdims=True)
    share = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    result: NDArray[np.float64] = np.log10(RESCALE * share + 1)
    return result.astype(np.float32)


def _counts(counts: ArrayLike) -> NDArray[np.float64]:
    values = _matrix(counts)
    _check(values, np.isfinite(values) & (values >= 0), "is not a finite count, 0 or more")
    return values


def _matrix(counts: Any) -> NDArray[np.float64]:
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"counts have shape {values.shape}; give [spots, genes]")
    return values


def _check(values: NDArray[np.float64], valid: NDArray[np.bool_], problem: str) -> None:
    if not valid.all():
        row, column = np.argwhere(~valid)[0].tolist()
        raise ValueError(
            f"row {row + 1}, column {column + 1} of the counts is {values[row, column]}, which {problem}"
        )
