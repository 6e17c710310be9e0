"""Measured sections for a fit: counts, positions, and the image under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mclst.runtime.errors import ReferenceDataError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.array_pitch import coarse_note, section_resolution
from mclst.runtime.tiling.bounds import check_centers
from mclst.sections.location import SlideLocation
from mclst.sections.normalize import SectionTotals, normalize
from mclst.sections.section import Section
from mclst.sections.tables.genes import counts_notes, match_genes


@dataclass(frozen=True)
class FitSection:
    """A measured section whose spots have pixel coordinates.

    Attributes
    ----------
    name : str
    image : Path or RemoteLocation
    spot : tuple of str, length n
    xy_px : float64 [n, 2]
        Level-0 px.
    counts : float32 [n, G]
        Of the model's genes, in its order.
    totals : SectionTotals
        Of all its spots, with or without pixel coordinates.
    mpp : float or None
        µm per level-0 px.
    notes : tuple of str
        Warnings for the user.
    """

    name: str
    image: SlideLocation
    spot: tuple[str, ...]
    xy_px: NDArray[np.float64]
    counts: NDArray[np.float32]
    totals: SectionTotals
    mpp: float | None
    notes: tuple[str, ...] = field(default=())

    def take(self, rows: NDArray[np.int64]) -> FitSection:
        """Keep these rows."""
        return FitSection(
            self.name,
            self.image,
            tuple(self.spot[row] for row in rows),
            self.xy_px[rows],
            self.counts[rows],
            self.totals.take(rows),
            self.mpp,
            self.notes,
        )

    def expression(self, units: str) -> NDArray[np.float32]:
        """Counts in one of NORMALIZATIONS, float32 [n, G]."""
        return normalize(units, self.counts, self.totals)


def read_fit_section(section: Section, genes: Sequence[str], mpp: float | None) -> FitSection:
    """Read a section's counts and check its spots against its image.

    Parameters
    ----------
    section : Section
    genes : sequence of str
        The model's.
    mpp : float, optional
        µm per level-0 px, if the user gave it.

    Raises
    ------
    ReferenceDataError
        If the section lacks an image or pixel coordinates, or fewer than two spots have them.
    SectionError
        If genes are missing.
    SpotsError
        If a spot is outside the image.
    SlideError
        If the image cannot be opened.
    """
    for name, value in (("image", section.image), ("pixel coordinates", section.xy_px)):
        if value is None:
            raise ReferenceDataError(
                f"section {section.name} ({section.path}) has no {name}, which a fit needs; add it, or leave "
                f"the section out with --hold-out {section.name}"
            )
    assert section.image is not None and section.xy_px is not None
    counts = match_genes(section, genes)
    located = np.flatnonzero(np.isfinite(section.xy_px).all(axis=1))
    if len(located) < 2:
        raise ReferenceDataError(
            f"section {section.name} ({section.path}) has pixel coordinates for {len(located)} spots; a fit "
            "needs two or more"
        )
    notes = counts_notes(section, genes)
    if missing := len(section) - len(located):
        notes.append(f"{missing} spots of {section.name} have no pixel coordinates and are left out")
    with open_slide(section.image) as slide:
        check_centers(
            section.xy_px, slide, lambda row: f"section {section.name} ({section.path}), {section.spot[row]},"
        )
        resolution = section_resolution(slide, section, mpp)
    notes += [*resolution.notes, *filter(None, [coarse_note(section, resolution.mpp)])]
    return FitSection(
        name=section.name,
        image=section.image,
        spot=tuple(str(spot) for spot in section.spot[located]),
        xy_px=section.xy_px[located],
        counts=counts[located],
        totals=SectionTotals.of(section, counts).take(located),
        mpp=resolution.mpp,
        notes=tuple(notes),
    )


def neighbor_means(
    values: NDArray[np.float32], xy_px: NDArray[np.float64], radius_px: float
) -> NDArray[np.float32]:
    """Mean of the values of the other spots within a radius; a spot alone keeps its own.

    Parameters
    ----------
    values : float32 [n, F]
    xy_px : float64 [n, 2]
    radius_px : float

    Returns
    -------
    float32 [n, F]
    """
    means = np.empty_like(values)
    near_all: Any = cKDTree(xy_px).query_ball_point(xy_px, radius_px, return_sorted=True)
    for row, near in enumerate(near_all):
        others = [other for other in near if other != row]
        means[row] = values[others].mean(0, dtype=np.float64) if others else values[row]
    return means
