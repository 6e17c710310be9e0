"""Measures of a method over its sections: each section first, then their mean; pooled apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.evaluation.metrics.per_gene import COLUMNS
from mclst.evaluation.metrics.significance import combine_p, false_discovery_rate
from mclst.sections.accuracy import pearson_per_gene


def genes_over_sections(genes: Sequence[str], sections: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Average the tables of `measure_genes` gene by gene, over the sections where a measure is defined.

    Parameters
    ----------
    genes : sequence of str, length G
    sections : sequence of DataFrame
        G rows each, in the order of `genes`.

    Returns
    -------
    DataFrame
        Index gene; the columns of `measure_genes` but r and its plain p-value. `minus_log10_p_spatial`
        combines the sections' p-values, which may depend on each other, and `fdr` corrects it for the genes.
    """
    averaged = [name for name in COLUMNS if name != "pcc"]
    stack = np.stack([table[averaged].to_numpy(np.float64) for table in sections])
    defined = np.count_nonzero(~np.isnan(stack), axis=0)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(stack, axis=0) / defined
    result = pd.DataFrame(mean, index=pd.Index(genes, name="gene"), columns=averaged)
    p = combine_p(np.stack([table["minus_log10_p_spatial"].to_numpy() for table in sections]))
    result.insert(0, "minus_log10_p_spatial", p)
    result.insert(1, "fdr", false_discovery_rate(p))
    return result


def pooled_pearson(predicted: Sequence[NDArray[np.float64]], truth: Sequence[NDArray[np.float64]]) -> float:
    """Mean over the genes of Pearson's r over the spots of all sections together.

    It rewards differences between sections, such as patients and batches, so it is not the mean of the
    sections' r. NaN if no gene has an r.
    """
    r = pearson_per_gene(np.concatenate(list(predicted)), np.concatenate(list(truth)))
    return float(r[~np.isnan(r)].mean()) if not np.isnan(r).all() else float("nan")
