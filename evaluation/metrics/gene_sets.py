"""Sets of genes to score, chosen on training sections alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.expression_map.morans_i import morans_i
from mclst.sections.normalize import median_log1p

LEAST_DETECTED = 0.1
"""Least share of the training spots with a count of a gene that may be variable or structured."""
SETS = ("HVG-50", "HVG-200", "SVG-50", "HEG-50")
DEFINITIONS = {
    "HVG-50": "the 50 genes of highest variance in the training sections",
    "HVG-200": "the 200 genes of highest variance in the training sections",
    "SVG-50": "the 50 genes of highest Moran's I in the training sections",
    "HEG-50": "the 50 genes of highest mean in the training sections",
}


class GeneStatistics:
    """Mean, variance and spatial structure of G genes over training sections, added one at a time.

    Expression is ln(1 + counts scaled to the section's median depth). Variance and Moran's I are taken within
    each section and averaged, so that differences between sections do not count.
    """

    def __init__(self, genes: int) -> None:
        self._sums = np.zeros((4, genes))
        self._spots = 0
        self._sections = 0
        self._structured = np.zeros(genes)

    def add(
        self, counts: NDArray[np.float32], total: NDArray[np.float64], xy: NDArray[np.float64] | None
    ) -> None:
        """Add a section: raw counts [n, G], counts of each spot over all genes [n], positions [n, 2]."""
        expression = np.asarray(median_log1p(counts, total), np.float64)
        self._spots += len(counts)
        self._sections += 1
        self._sums[0] += (counts > 0).sum(axis=0)
        self._sums[1] += expression.sum(axis=0)
        self._sums[2] += expression.var(axis=0)
        if xy is not None:
            located = np.isfinite(xy).all(axis=1)
            moran = morans_i(expression[located], xy[located])
            self._structured += np.isfinite(moran)
            self._sums[3] += np.nan_to_num(moran)

    def choose(self) -> dict[str, NDArray[np.intp]]:
        """Columns of each set of SETS, best first; a set of more genes than there are is left out.

        Ties go to the earlier gene. Empty before a section is added.
        """
        if not self._spots:
            return {}
        detected, mean, variance, moran = self._sums
        frequent = detected >= LEAST_DETECTED * self._spots
        with np.errstate(invalid="ignore", divide="ignore"):
            moran = np.where(self._structured > 0, moran / self._structured, -np.inf)
        scores = {
            "HVG": np.where(frequent, variance, -np.inf),
            "SVG": np.where(frequent, moran, -np.inf),
            "HEG": mean,
        }
        chosen = {}
        for name in SETS:
            kind, _, size = name.partition("-")
            order = np.argsort(-scores[kind], kind="stable")[: int(size)]
            if len(order) == int(size) and np.isfinite(scores[kind][order]).all():
                chosen[name] = order
        return chosen


def listed_columns(genes: Sequence[str], listed: Sequence[str]) -> NDArray[np.intp]:
    """Columns of the genes of a list that are among `genes`, in the list's order."""
    column_of = {gene: i for i, gene in enumerate(genes)}
    return np.array([column_of[gene] for gene in listed if gene in column_of], np.intp)
