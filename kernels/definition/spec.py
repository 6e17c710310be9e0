"""The settings of a retrieval: how neighbors are ranked and weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Rank = Literal["cosine", "l2", "l1"]
Distance = Literal["l2", "l1", "cosine"]
Weighting = Literal["softmax", "softmax-squared", "inverse-square", "uniform", "similarity"]

RANKS: tuple[str, ...] = get_args(Rank)
DISTANCES: tuple[str, ...] = get_args(Distance)
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
NEIGHBOR_WEIGHTINGS = WEIGHTINGS[:-1]
"""Those of the k nearest rows; similarity weighs the whole bank."""


@dataclass(frozen=True)
class RetrievalSpec:
    """How a tile's expression is predicted from the bank.

    Parameters
    ----------
    k : int
        Neighbors per tile, 1 … M for a bank of M rows.
    rank : {"cosine", "l2", "l1"}
        What selects the k neighbors: largest `cosine` similarity, smallest `l2` or `l1` distance.
        Ties go to the lower bank row.
    distance : {"l2", "l1", "cosine"}
        Distance for the weights, between embeddings that are not normalized; `cosine` is 1 - cos.
    weighting : {"softmax", "softmax-squared", "inverse-square", "uniform", "similarity"}
        softmax of -d/temperature; softmax of -d²/temperature; d⁻², normalized, where zero distances share all
        the weight; equal weights; or the cosine 1 - d, normalized, with distance "cosine" and k = M. Cosines
        that add up to nothing are no weights; those of embeddings like CLIP's are all positive.
    temperature : float
        Above 0; used by the two softmax weightings only.

    Raises
    ------
    ValueError
        If a field is out of range.
    """

    k: int = 200
    rank: Rank = "cosine"
    distance: Distance = "l1"
    weighting: Weighting = "inverse-square"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k is {self.k!r}; give a whole number of neighbors, 1 or more")
        for name, choices in (("rank", RANKS), ("distance", DISTANCES), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if self.weighting == "similarity" and self.distance != "cosine":
            raise ValueError(
                f"weighting 'similarity' is of cosines, not of {self.distance!r}; give distance 'cosine'"
            )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature!r}; give a finite number above 0")
