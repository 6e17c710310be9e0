"""Measured sections in the map's genes and units, as baselines and the leakage check need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mclst.sections.formats.reference import read_section
from mclst.sections.formats.source import SectionSource
from mclst.sections.location import SlideLocation
from mclst.sections.normalize import SectionTotals, normalize
from mclst.sections.tables.genes import match_genes


@dataclass(frozen=True)
class MeasuredSection:
    """A measured section.

    Attributes
    ----------
    name : str
    spot : tuple of str, length n
    counts, expression : float32 [n, G]
        Raw, and in the map's units.
    totals : SectionTotals
    xy : float64 [n, 2] or None
        Array coordinates, else level-0 px; NaN rows where a spot has none.
    xy_px : float64 [n, 2] or None
        Level-0 px of `image`.
    image : Path, RemoteLocation or None
    image_scale : float
        Px of `image` per px of the slide.
    """

    name: str
    spot: tuple[str, ...]
    counts: NDArray[np.float32]
    expression: NDArray[np.float32]
    totals: SectionTotals
    xy: NDArray[np.float64] | None
    xy_px: NDArray[np.float64] | None
    image: SlideLocation | None
    image_scale: float = 1.0

    def __len__(self) -> int:
        return len(self.spot)

    def rows_of(self, spots: Sequence[str]) -> NDArray[np.intp]:
        """Rows of the named spots, which must exist."""
        row_of = {name: i for i, name in enumerate(self.spot)}
        return np.array([row_of[name] for name in spots], np.intp)

    def image_mpp(self, mpp: float | None) -> float | None:
        """µm per px of the image, of that of the slide."""
        return None if mpp is None else mpp / self.image_scale

    @cached_property
    def profile(self) -> NDArray[np.float64]:
        """The section as one sample: ln(1 + counts per 10,000) of its summed counts, float64 [G]."""
        summed = self.counts.sum(axis=0, dtype=np.float64)
        return np.asarray(np.log1p(summed / max(float(summed.sum()), 1.0) * 10_000))

    @cached_property
    def place(self) -> NDArray[np.float64] | None:
        """Positions within the tissue, float64 [n, 2]: 0 to 1 from edge to edge; NaN where unknown."""
        if self.xy is None or not np.isfinite(self.xy).all(axis=1).any():
            return None
        low, high = np.nanmin(self.xy, axis=0), np.nanmax(self.xy, axis=0)
        place: NDArray[np.float64] = (self.xy - low) / np.where(high > low, high - low, 1.0)
        return place


def read_measured(source: SectionSource, genes: Sequence[str], normalization: str) -> MeasuredSection:
    """Read a section and normalize it as the map is.

    Raises SectionError if it is damaged or lacks one of the genes.
    """
    section = read_section(source)
    counts = match_genes(section, genes)
    totals = SectionTotals.of(section, counts)
    xy = section.xy_px if section.array_xy is None else section.array_xy.astype(np.float64)
    return MeasuredSection(
        name=section.name,
        spot=tuple(section.spot.tolist()),
        counts=counts,
        expression=normalize(normalization, counts, totals),
        totals=totals,
        xy=xy,
        xy_px=section.xy_px,
        image=section.image,
        image_scale=section.image_scale,
    )
