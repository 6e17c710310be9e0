"""Normalizations of counts to expression.

`spot_wise` and `gene_wise` are the published mclSTExp preprocessing: scprep's `library_size_normalize` to
10,000, which divides rows by their sums, then log10(x + 1). mclSTExp's dataset passes spots x genes, which
normalizes each spot; its scripts for the averaged matrices pass genes x spots, which normalizes each gene
over its section.

A section is all its measured spots, as in BLEEP's notebook, which normalizes before it reads tiles: a spot
that a fit or a training leaves out counts in `SectionTotals`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from mclst.sections.section import Section

RESCALE = 10_000.0


@dataclass(frozen=True)
class SectionTotals:
    """Sums over a whole section, which stay the same when some of its spots are left out.

    Attributes
    ----------
    spot : ndarray of float64, shape (n,)
        Counts of each kept spot over all measured genes.
    measured_genes : int or None
        How many these are; None if unknown.
    gene : ndarray of float64, shape (G,)
        Counts of each of the model's genes over all spots.
    median : float
        Median of the totals above 0 of all spots; 0 if there is none.
    """

    spot: NDArray[np.float64]
    measured_genes: int | None
    gene: NDArray[np.float64]
    median: float

    @classmethod
    def of(cls, section: Section, counts: ArrayLike) -> SectionTotals:
        """Totals of a section, whose spots have these counts [n, G] of the model's genes."""
        return cls.of_counts(counts, section.total, len(section.genes))

    @classmethod
    def of_counts(cls, counts: ArrayLike, spot: ArrayLike, measured_genes: int | None) -> SectionTotals:
        """Totals of counts [n, G] of all spots, with `spot` and `measured_genes` as above."""
        totals = np.asarray(spot, np.float64)
        return cls(totals, measured_genes, _matrix(counts).sum(axis=0), _median(totals))

    def take(self, rows: NDArray[Any]) -> SectionTotals:
        """Keep these spots, by their numbers [m] or a mask [n]."""
        return replace(self, spot=self.spot[rows])


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


def gene_wise(counts: ArrayLike, total: ArrayLike | None = None) -> NDArray[np.float32]:
    """Normalize each gene over a section: log10(10,000 · c / (sum of the gene over all spots) + 1).

    Parameters
    ----------
    counts : array, shape (n, G)
        Spots of one section.
    total : array, shape (G,), optional
        Counts of each gene over all spots of the section; default: over these n.

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
    return _log_normalize(counts, axis=0, total=None if total is None else np.asarray(total, np.float64))


def median_log1p(
    counts: ArrayLike, total: ArrayLike | None = None, median: float | None = None
) -> NDArray[np.float32]:
    """Normalize each spot to the section's median depth: ln(median · c / (total of the spot) + 1).

    Parameters
    ----------
    counts : array, shape (n, G)
        Spots of one section.
    total : array, shape (n,), optional
        Counts of each spot over all measured genes; default: over the G genes.
    median : float, optional
        Of the totals above 0 of all spots of the section; default: of these n.

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
    depth = _median(totals) if median is None else median
    scale = np.divide(depth, totals, out=np.zeros_like(totals), where=nonzero)
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


def normalize(kind: str, counts: ArrayLike, totals: SectionTotals | None) -> NDArray[np.float32]:
    """Normalize a section's counts by name.

    Parameters
    ----------
    kind : str
        One of NORMALIZATIONS.
    counts : array, shape (n, G)
    totals : SectionTotals or None
        Of these spots' section. None: `counts` hold all its spots and measured genes.

    Returns
    -------
    ndarray of float32, shape (n, G)

    Raises
    ------
    ValueError
        If a count is negative or not finite, or as `log_share`.
    """
    if totals is None:
        return NORMALIZATIONS[kind](counts)
    if kind == "gene-wise":
        return gene_wise(counts, totals.gene)
    if kind == "median-log1p":
        return median_log1p(counts, totals.spot, totals.median)
    if kind == "log-share":
        return log_share(counts, totals.spot, totals.measured_genes)
    return NORMALIZATIONS[kind](counts)


def _median(totals: NDArray[np.float64]) -> float:
    nonzero = totals > 0
    return float(np.median(totals[nonzero])) if nonzero.any() else 0.0


def _log_normalize(
    counts: ArrayLike, axis: int, total: NDArray[np.float64] | None = None
) -> NDArray[np.float32]:
    values = _counts(counts)
    total = values.sum(axis=axis, keepdims=True) if total is None else np.expand_dims(total, axis)
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
