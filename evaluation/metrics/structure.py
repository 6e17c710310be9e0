"""Structural similarity of gene maps whose spots need not lie on a grid."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree

SIGMA = 1.5
"""Standard deviation of the window, in spot distances, as in Wang et al. 2004 in pixels."""
TRUNCATE = 3.5
"""Radius of the window in standard deviations, as scikit-image's."""
K1, K2 = 0.01, 0.03


def spot_distance(xy: NDArray[np.float64]) -> float:
    """Median distance of a spot to its nearest other, in the unit of `xy` [n, 2]; 1 if all coincide."""
    if len(xy) < 2:
        return 1.0
    nearest = np.asarray(cKDTree(xy).query(xy, k=2)[0])[:, 1]
    distances = nearest[nearest > 0]
    return float(np.median(distances)) if len(distances) else 1.0


def window_weights(xy: NDArray[np.float64]) -> sp.csr_matrix:
    """Gaussian weights of the spots around each spot, rows summing to 1: sparse float64 [n, n].

    xy: float64 [n, 2] in any unit. A spot alone sees itself.
    """
    n = len(xy)
    scaled = xy / spot_distance(xy)
    pairs = cKDTree(scaled).query_pairs(SIGMA * TRUNCATE, output_type="ndarray")
    rows, columns = pairs[:, 0], pairs[:, 1]
    weight = np.exp(-np.square(scaled[rows] - scaled[columns]).sum(axis=1) / (2 * SIGMA**2))
    upper = sp.csr_matrix((weight, (rows, columns)), shape=(n, n))
    weights = upper + upper.T + sp.identity(n, format="csr")
    return sp.csr_matrix(sp.diags(1 / np.asarray(weights.sum(axis=1)).ravel()) @ weights)


def ssim_per_gene(
    predicted: NDArray[np.float64], truth: NDArray[np.float64], weights: sp.csr_matrix
) -> NDArray[np.float64]:
    """Mean structural similarity of each gene's map: float64 [G]; see `ssim_of_spots`."""
    return np.asarray(ssim_of_spots(predicted, truth, weights).mean(axis=0))


def ssim_of_spots(
    predicted: NDArray[np.float64], truth: NDArray[np.float64], weights: sp.csr_matrix
) -> NDArray[np.float64]:
    """Structural similarity around each spot (Wang et al. 2004).

    Local means, variances and covariance are taken over the spots in a Gaussian window instead of pixels. The
    data range is the truth's, so a smoothed map in the right units scores low.

    Parameters
    ----------
    predicted, truth : float64 [n, G]
    weights : sparse [n, n]
        Of `window_weights`.

    Returns
    -------
    float64 [n, G]
        NaN where the truth is constant.
    """
    extent = np.ptp(truth, axis=0)
    scale = np.where(extent > 0, extent, 1.0)
    a, b = predicted / scale, truth / scale
    mean_a, mean_b = weights @ a, weights @ b
    var_a = np.maximum(weights @ np.square(a) - np.square(mean_a), 0.0)
    var_b = np.maximum(weights @ np.square(b) - np.square(mean_b), 0.0)
    cov = weights @ (a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / (
        (np.square(mean_a) + np.square(mean_b) + c1) * (var_a + var_b + c2)
    )
    return np.where(extent > 0, similarity, np.nan)
