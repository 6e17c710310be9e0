"""What held-out sections showed of a bundle, and how it applies to the spots of a map."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.nearest import NearestSearch
from mclst.runtime.trust.stain import Stain

MAX_GALLERY = 4096
PERCENTILES = 101

Floats = NDArray[np.float32]

OF_BANK, OF_NETWORK = "of the bank alone", "nothing, the network is as it is"
"""End of `Calibration.kind` where the network may have been trained on the sections it is calibrated by."""

SHAPES: dict[str, tuple[str, ...]] = {
    "projection": ("D", "Q"),
    "gallery": ("M", "Q"),
    "distance": ("P",),
    "edges": ("E",),
    "levels": ("L",),
    "residual": ("L", "B", "S", "G"),
    "r": ("K", "G"),
    "expected_r": ("G",),
    "low_r": ("G",),
    "error": ("G",),
    "error_at": ("T",),
    "spot_error": ("T",),
    "coverage": ("L", "K"),
    "stain": ("N", "C"),
}
"""Its arrays, all float32, and their axes by letter; equal letters are equal lengths."""


@dataclass(frozen=True)
class Calibration:
    """What K groups of sections, each predicted from the others, showed.

    Parameters
    ----------
    kind : str
        What was left out together, such as "section", "patient" or "part of one section", for people.
    group : tuple of str
        Names of the K groups.
    sections, spots : int
        Sections and spots behind the figures.
    projection : float32 [D, Q]
        From an embedding to the space in which distances are Euclidean.
    gallery : float32 [M, Q]
        Projected embeddings of training spots, at most 4096.
    distance : float32 [101]
        Percentiles 0 to 100 of the held-out spots' distance to the nearest gallery spot of other groups.
    edges : float32 [B - 1]
        Distances between the bins of `residual`.
    levels : float32 [L]
        Coverages of the intervals, such as 0.8 and 0.9.
    residual : float32 [L, B, 2, G]
        Lower and upper quantile of truth - prediction per bin of distance.
    r : float32 [K, G]
        Pearson r per group; NaN where a gene is constant.
    expected_r, low_r : float32 [G]
        Expected r in a new section, and the r that 9 of 10 new sections exceed; NaN where unknown.
    error : float32 [G]
        Root mean squared error.
    error_at, spot_error : float32 [T]
        Root mean squared error of a spot over its genes, at these means of its predicted expression; one
        value if they did not tell the error.
    coverage : float32 [L, K]
        Share of a group's values inside intervals that the other groups gave; NaN where there is no other.
    stain : float32 [N, 11]
        `stain_values` of each section with a slide; N may be 0.
    """

    kind: str
    group: tuple[str, ...]
    sections: int
    spots: int
    projection: Floats
    gallery: Floats
    distance: Floats
    edges: Floats
    levels: Floats
    residual: Floats
    r: Floats
    expected_r: Floats
    low_r: Floats
    error: Floats
    error_at: Floats
    spot_error: Floats
    coverage: Floats
    stain: Floats

    @property
    def genes(self) -> int:
        """G."""
        return len(self.error)

    @property
    def optimistic(self) -> bool:
        """Whether the network may have been trained on the sections that it was calibrated by."""
        return self.kind.endswith((OF_BANK, OF_NETWORK))

    @property
    def ranks_spots(self) -> bool:
        """Whether `spot_errors` differ, as they do only where they ranked the errors of held-out spots."""
        return len(self.error_at) > 1

    @cached_property
    def search(self) -> NearestSearch:
        """The gallery prepared for queries; raises ProviderError where retrieval is not installed."""
        return NearestSearch(self.gallery)

    def distances(self, embedding: NDArray[np.floating[Any]]) -> Floats:
        """Euclidean distance float32 [n] of embeddings [n, D] to the nearest spot of the gallery."""
        return self.search.distances(np.asarray(embedding, np.float32) @ self.projection)

    def percentiles(self, distance: NDArray[np.floating[Any]]) -> Floats:
        """Share float32 [n], 0 to 1, of the held-out spots that are nearer than `distance` [n]."""
        rank = np.interp(distance, self.distance, np.linspace(0, 1, PERCENTILES), right=1.0)
        return np.where(distance > self.distance[-1], 1.0, rank).astype(np.float32)

    def interval(
        self,
        expression: Floats,
        distance: NDArray[np.floating[Any]],
        outside: NDArray[np.bool_],
        level: int,
        *,
        least: float = -np.inf,
    ) -> tuple[Floats, Floats]:
        """Return the intervals (low, high) float32 [n, G] of level number `level`.

        expression: float32 [n, G]. distance: [n]. outside: bool [n], spots without an interval: NaN.
        least: no expression of the units is below it, so no lower bound is, unless the prediction itself is.
        """
        spots = np.searchsorted(self.edges, distance)
        low, high = (expression + self.residual[level, spots, side] for side in (0, 1))
        low = np.maximum(low, np.minimum(expression, np.float32(least)))
        high = np.maximum(high, low)
        low[outside] = high[outside] = np.nan
        return low, high

    def spot_errors(self, expression: Floats) -> Floats:
        """Expected root mean squared error float32 [n] of spots with expression [n, G], in its units."""
        mean = expression.mean(axis=1, dtype=np.float64)
        return np.asarray(np.interp(mean, self.error_at, self.spot_error), np.float32)

    def of_genes(self, kept: NDArray[np.int64]) -> Calibration:
        """Return the same for some genes alone, by their columns."""
        parts = {name: getattr(self, name)[..., kept] for name, axes in SHAPES.items() if axes[-1] == "G"}
        return replace(self, **parts)

    def reliable(self, level: float) -> NDArray[np.bool_]:
        """Bool [G]: genes whose r exceeds `level` in 9 of 10 new sections."""
        return np.asarray(np.nan_to_num(self.low_r, nan=-1.0) >= level)


def stain_values(stain: Stain) -> list[float]:
    """Background, hematoxylin, eosin (3 values each), density and saturation: what is compared of a stain."""
    return [*stain.background, *stain.hematoxylin, *stain.eosin, stain.density, stain.saturation]


def gallery_rows(count: int) -> NDArray[np.int64]:
    """Rows int64 [at most MAX_GALLERY], spread evenly over `count` spots, that a gallery holds."""
    return np.unique(np.linspace(0, count - 1, MAX_GALLERY).round().astype(np.int64))


assert {field.name for field in fields(Calibration)} >= SHAPES.keys()
