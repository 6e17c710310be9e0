"""Spatial domains: cluster spots by expression and compare groupings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

COMPONENTS = 9
"""Principal components, as in the published notebook."""
N_INIT = 10


@dataclass(frozen=True)
class Agreement:
    """Agreement of two groupings: adjusted Rand index, normalized mutual information, compared spots."""

    ari: float
    nmi: float
    spots: int


def find_domains(
    expression: NDArray[np.float64], count: int, components: int = COMPONENTS
) -> NDArray[np.int64]:
    """Cluster spots by expression, float64 [n, G], into `count` domains: int64 [n], 0 … count - 1.

    PCA to at most `components`, then k-means with ten seeded starts; deterministic.
    Raises ValueError if there are fewer spots than domains.
    """
    if not 1 <= count <= len(expression):
        raise ValueError(f"{count} domains of {len(expression)} spots; give 1 to {len(expression)}")
    n_components = min(components, *expression.shape)
    scores = PCA(n_components=n_components, svd_solver="full").fit_transform(expression)
    labels = KMeans(n_clusters=count, n_init=N_INIT, random_state=0).fit_predict(scores)
    return np.asarray(labels, np.int64)


def compare_groupings(labels: NDArray[Any], reference: NDArray[Any]) -> Agreement:
    """Compare two groupings [n], regardless of group names.

    ARI: Hubert & Arabie 1985. NMI: arithmetic mean of the entropies, scikit-learn's default.
    """
    return Agreement(
        float(adjusted_rand_score(reference, labels)),
        float(normalized_mutual_info_score(reference, labels)),
        len(labels),
    )
