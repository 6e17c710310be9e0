"""The line of a summary that names a map's structured genes."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

LISTED = 5


def structured_rows(genes: Iterable[tuple[str, float]]) -> list[tuple[str, str]]:
    """Row of the first genes with a defined Moran's I, as `Map.structured` gives them; none without one."""
    known = [f"{gene} ({value:.2f})" for gene, value in genes if isfinite(value)][:LISTED]
    return [("structured", f"{', '.join(known)} (Moran's I)")] if known else []
