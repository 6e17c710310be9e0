"""All measures of one section, gene by gene."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.evaluation.metrics.agreement import (
    concordance_per_gene,
    mse_per_gene,
    partial_correlation_per_gene,
    r_squared_per_gene,
    relative_variance_per_gene,
    spearman_per_gene,
)
from mclst.evaluation.metrics.autocorrelation import LagClasses, effective_spots
from mclst.evaluation.metrics.significance import false_discovery_rate, minus_log10_p
from mclst.evaluation.metrics.structure import ssim_per_gene, window_weights
from mclst.runtime.expression_map.morans_i import morans_i
from mclst.sections.accuracy import pearson_per_gene

BLOCK_BYTES = 64 << 20
"""Size of the values of a block of genes."""
FDR_LEVEL = 0.05
COLUMNS = (
    "pcc",
    "spearman",
    "ccc",
    "r2",
    "relative_variance",
    "mse",
    "pcc_partial",
    "ssim",
    "morans_i_map",
    "morans_i_truth",
    "effective_spots",
)
HEADLINES = {
    "spearman": "mean",
    "ccc": "mean",
    "r2": "median",
    "relative_variance": "median",
    "ssim": "mean",
    "morans_i_map": "mean",
    "morans_i_truth": "mean",
    "pcc_partial": "mean",
    "effective_spots": "median",
}
"""Measures of a section's row, and how the genes are summarized; R² and variance ratios have long tails."""


def measure_genes(
    predicted: NDArray[np.float64],
    truth: NDArray[np.float64],
    xy: NDArray[np.float64] | None,
    covariates: NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    """Measure one section.

    Parameters
    ----------
    predicted, truth : float64 [n, G]
    xy : float64 [n, 2] or None
        Positions of the spots in any unit; without them the spatial measures are NaN.
    covariates : float64 [n, C], optional
        What the partial correlation is given; NaN rows are left out of it.

    Returns
    -------
    DataFrame
        G rows in the order of the genes: COLUMNS, `minus_log10_p` of independent spots, and
        `minus_log10_p_spatial` and `fdr`, corrected for spatial autocorrelation and for the number of genes.
    """
    n, genes = truth.shape
    block = max(1, BLOCK_BYTES // (8 * n))
    located = xy is not None and bool(np.isfinite(xy).all()) and n >= 3
    assert xy is not None or not located
    weights = window_weights(xy) if located and xy is not None else None
    classes = LagClasses.of(xy) if located and xy is not None else None
    parts = []
    for start in range(0, genes, block):
        a, b = predicted[:, start : start + block], truth[:, start : start + block]
        part = dict.fromkeys(COLUMNS, np.full(a.shape[1], np.nan))
        part["pcc"] = pearson_per_gene(a, b)
        part["spearman"] = spearman_per_gene(a, b)
        part["ccc"] = concordance_per_gene(a, b)
        part["r2"] = r_squared_per_gene(a, b)
        part["relative_variance"] = relative_variance_per_gene(a, b)
        part["mse"] = mse_per_gene(a, b)
        if covariates is not None:
            present = np.isfinite(covariates).all(axis=1)
            part["pcc_partial"] = partial_correlation_per_gene(a[present], b[present], covariates[present])
        if weights is not None and classes is not None and xy is not None:
            part["ssim"] = ssim_per_gene(a, b, weights)
            part["morans_i_map"], part["morans_i_truth"] = morans_i(a, xy), morans_i(b, xy)
            part["effective_spots"] = effective_spots(a, b, classes)
        parts.append(pd.DataFrame(part))
    table = pd.concat(parts, ignore_index=True)
    r = table["pcc"].to_numpy()
    table["minus_log10_p"] = minus_log10_p(r, n)
    spatial = minus_log10_p(r, table["effective_spots"].to_numpy())
    table["minus_log10_p_spatial"] = np.where(table["effective_spots"].isna(), np.nan, spatial)
    table["fdr"] = false_discovery_rate(table["minus_log10_p_spatial"].to_numpy())
    return table


def headline(table: pd.DataFrame) -> dict[str, float]:
    """A section's row: measures over all genes where they are defined, NaN if none is.

    `morans_i_agreement` is Pearson's r between map and truth over the genes; `genes_fdr_5` counts those with
    r > 0 and a false discovery rate of at most 5 %.
    """
    row = {name: _summary(table[name].dropna(), how) for name, how in HEADLINES.items()}
    moran = table[["morans_i_map", "morans_i_truth"]].dropna().to_numpy()
    row["morans_i_agreement"] = (
        float(pearson_per_gene(moran[:, :1], moran[:, 1:])[0]) if len(moran) > 2 else float("nan")
    )
    tested = table["fdr"].notna().any()
    positive = (table["fdr"] <= FDR_LEVEL) & (table["pcc"] > 0)
    row["genes_fdr_5"] = int(positive.sum()) if tested else float("nan")
    return row


def _summary(values: pd.Series[float], how: str) -> float:
    return float(getattr(values, how)()) if len(values) else float("nan")
