"""Spatial domains: spots grouped by their expression, and how groups agree with a pathologist's regions."""

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
STARTS = 10


@dataclass(frozen=True)
class Agreement:
    """Two groupings of the same spots: adjusted Rand index, normalised mutual information, spots compared."""

    ari: float
    nmi: float
    spots: int


def find_domains(
    expression: NDArray[np.float64], count: int, components: int = COMPONENTS
) -> NDArray[np.int64]:
    """Group spots by expression, float64 [n, G], into `count` domains: int64 [n], 0 … count - 1.

    PCA to `components` (fewer where spots or genes are fewer), then k-means of the best of ten seeded starts; the same
    input gives the same domains. Raises ValueError where there are fewer spots than domains.
    """
    if not 1 <= count <= len(expression):
        raise ValueError(f"{count} domains of {len(expression)} spots; give 1 to {len(expression)}")
    kept = min(components, *expression.shape)
    scores = PCA(n_components=kept, svd_solver="full").fit_transform(expression)
    found = KMeans(n_clusters=count, n_init=STARTS, random_state=0).fit_predict(scores)
    return np.asarray(found, np.int64)


def agree(found: NDArray[Any], expected: NDArray[Any]) -> Agreement:
    """Compare two groupings [n]; names of groups do not matter, only which spots are together.

    Sources: Hubert & Arabie 1985 (ARI); NMI with the arithmetic mean of the entropies, as scikit-learn has it.
    """
    return Agreement(
        float(adjusted_rand_score(expected, found)),
        float(normalized_mutual_info_score(expected, found)),
        len(found),
    )
