"""A prediction together with what tells whether to trust it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.result import RetrievalResult


@dataclass(frozen=True, kw_only=True)
class PlacedResult(RetrievalResult):
    """A prediction with what its readout knows of where the spots stand.

    distance, section_share: float32 [N], see MeasuredResult; None if it does not know.
    """

    distance: NDArray[np.float32] | None = None
    section_share: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class MeasuredResult(RetrievalResult):
    """Expression for N spots and where they stand; NaN where something is not known.

    Attributes
    ----------
    distance : float32 [N]
        To the nearest training spot; see `Calibration.distances`.
    expected_error : float32 [N]
        Root mean squared error over the genes; see `Calibration.spot_errors`.
    section_share : float32 [N]
        Largest share of the neighbors' weight that comes from one reference section; NaN without neighbors.
    """

    distance: NDArray[np.float32]
    expected_error: NDArray[np.float32]
    section_share: NDArray[np.float32]


MEASURES = ("distance", "expected_error", "section_share")
"""Fields that a MeasuredResult adds."""


def add_section_columns(expression: NDArray[np.float32], section: NDArray[np.str_]) -> NDArray[np.float32]:
    """Add a column per section to a bank's expression, 1 for its spots: [M, G] -> [M, G + sections].

    Its weighted mean over the neighbors is the section's share of the weight. A column's mean does not depend
    on the others, so the genes keep their values.
    """
    columns = section[:, None] == np.unique(section)
    return np.hstack([expression, columns.astype(np.float32)])


def split_section_columns(result: RetrievalResult, genes: int) -> RetrievalResult:
    """Split the sections' columns off a result of `genes` genes, and keep the largest share."""
    if result.expression.shape[1] == genes:
        return result
    return PlacedResult(
        np.ascontiguousarray(result.expression[:, :genes]),
        result.nearest,
        result.effective_k,
        section_share=result.expression[:, genes:].max(axis=1),
    )
