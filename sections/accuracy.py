"""The measures of the mclSTExp scripts: Pearson r per gene, over all genes and over the 50 highest, MSE and MAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEG_GENES = 50


@dataclass(frozen=True)
class Score:
    """How one predicted section stands against its measurement.

    pcc_acg: mean of `pcc_per_gene` over all genes for which it is defined ("hvg pcc" in the scripts' printout,
        ACG, all considered genes, in the paper).
    pcc_heg: mean over the 50 genes with the highest mean in this section's truth; as published an undefined r among
        them is not dropped, so it makes this NaN.
    mse, mae: mean squared and mean absolute error over all spots x genes.
    pcc_per_gene: float64 [G], Pearson r over the spots; NaN where a gene is constant in the prediction or the truth.
    spots: spots the measures are over. left_out: spots without a prediction (NaN rows), not among them.
    undefined: genes whose r is NaN.
    """

    pcc_acg: float
    pcc_heg: float
    mse: float
    mae: float
    pcc_per_gene: NDArray[np.float64]
    spots: int
    left_out: int
    undefined: int


def score(predicted: NDArray[Any], truth: NDArray[Any]) -> Score:
    """Measure a prediction of one section, in float64.

    predicted, truth: [n, G], the same spots and genes in the same order, in the same normalised units. Both matter:
        the published figures hold for truth normalised gene-wise within the section, and r, MSE and the choice of the
        50 genes all change with another normalisation.
    A row of `predicted` that is NaN throughout (an unreadable tile) is left out and counted.
    Raises ValueError where the shapes differ, fewer than two spots are left, or any other value is not finite.
    Source: mclSTExp, the scripts' evaluation per left-out section; the published figure is the mean over sections.
    """
    if predicted.shape != truth.shape or predicted.ndim != 2:
        raise ValueError(
            f"predicted is {predicted.shape} and truth {truth.shape}; give both as [spots, genes]"
        )
    present = ~np.isnan(predicted).all(axis=1)
    p, t = (np.asarray(array[present], np.float64) for array in (predicted, truth))
    if len(p) < 2 or not p.shape[1]:
        raise ValueError(
            f"{len(p)} spots with a prediction and {p.shape[1]} genes; a score needs two and one"
        )
    for name, array in (("predicted", p), ("truth", t)):
        if not np.isfinite(array).all():
            row, gene = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"{name} has {array[row, gene]} at spot row {np.flatnonzero(present)[row]}, gene {gene}"
            )
    r = pearson_per_gene(p, t)
    defined = ~np.isnan(r)
    highest = np.argsort(t.mean(axis=0))[::-1][:HEG_GENES]
    difference = p - t
    return Score(
        pcc_acg=float(r[defined].mean()) if defined.any() else float("nan"),
        pcc_heg=float(r[highest].mean()),
        mse=float(np.square(difference).mean()),
        mae=float(np.abs(difference).mean()),
        pcc_per_gene=r,
        spots=len(p),
        left_out=int(np.count_nonzero(~present)),
        undefined=int(np.count_nonzero(~defined)),
    )


def pearson_per_gene(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson r of each column of float64 [n, G] `a` with that of `b`: float64 [G], NaN where either is constant."""
    constant = (a == a[:1]).all(axis=0) | (b == b[:1]).all(axis=0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    a, b = (_to_unit_length(centred) for centred in (a, b))
    r: NDArray[np.float64] = np.clip((a * b).sum(axis=0), -1.0, 1.0)
    r[constant] = np.nan
    return r


def _to_unit_length(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = np.abs(columns).max(axis=0)
    columns = columns / np.where(largest > 0, largest, 1.0)  # squares of very small values would vanish
    length = np.sqrt(np.square(columns).sum(axis=0))
    unit: NDArray[np.float64] = columns / np.where(length > 0, length, 1.0)
    return unit
