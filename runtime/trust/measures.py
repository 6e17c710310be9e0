"""A prediction together with what tells whether to trust it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.result import RetrievalResult


@dataclass(frozen=True, kw_only=True)
class SharedResult(RetrievalResult):
    """A retrieval that also tells how much of the weight one section has.

    section_share: float32 [N], see MeasuredResult.
    """

    section_share: NDArray[np.float32]


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
