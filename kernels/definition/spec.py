"""What a retrieval is: which rows are neighbours, and how their expression is weighed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Rank = Literal["cosine", "l2", "l1"]
Distance = Literal["l2", "l1", "cosine"]
Weighting = Literal["softmax", "softmax-squared", "inverse-square", "uniform"]

RANKS: tuple[str, ...] = get_args(Rank)
DISTANCES: tuple[str, ...] = get_args(Distance)
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)


@dataclass(frozen=True)
class RetrievalSpec:
    """How a tile's expression is made from the bank.

    k: neighbours per tile, 1 … M (M: rows of the bank).
    rank: what chooses the k neighbours: largest `cosine` similarity, smallest `l2` or `l1` distance;
        ties go to the lower bank row.
    distance: what the weights are made of, on un-normalised embeddings; `cosine` means 1 - cos.
    weighting: `softmax` of -d/temperature; `softmax-squared` of -d²/temperature; `inverse-square` d⁻², normalised,
        where a zero distance takes all the weight, shared among equals; `uniform`.
    temperature: > 0, used by the two softmax weightings alone.

    Raises ValueError, in one sentence, where a field is out of its range.
    """

    k: int = 200
    rank: Rank = "cosine"
    distance: Distance = "l1"
    weighting: Weighting = "inverse-square"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k is {self.k!r}; give a whole number of neighbours, 1 or more")
        for name, choices in (("rank", RANKS), ("distance", DISTANCES), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature!r}; give a finite number above 0")
