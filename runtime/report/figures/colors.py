"""The color map of expression, and its usual limits."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray

COLORMAP = ListedColormap(matplotlib.colormaps["magma_r"](np.linspace(0.04, 0.92, 256)))
"""Dark is more, as eyes expect on a pale ground; neither end is lost in the paper or in black."""


def usual_limits(values: NDArray[np.floating]) -> tuple[float, float]:
    """1st and 99th percentile of values [n] without NaN; 0 and 1 of none."""
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values.astype(np.float64), [1, 99])
    return float(low), float(high)
