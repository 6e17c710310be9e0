"""Restrict spots or a grid to the polygons of a GeoJSON."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from mclst.runtime.errors import SpotsError
from mclst.runtime.tiling.grid import Grid
from mclst.sections.section import Spots
from mclst.sections.tables.geojson import read_regions
from mclst.sections.tables.regions import in_regions


def restrict_spots(spots: Spots, region: Path) -> Spots:
    """Keep the spots whose centers are in a polygon; SpotsError if none is, SectionError if it is damaged."""
    keep = in_regions(spots.xy_px, read_regions(region))
    if not keep.any():
        raise SpotsError(
            f"no spot is in a region of {region}, whose polygons must be level-0 pixels of the slide; "
            "give other regions"
        )
    left_out = int(np.count_nonzero(~keep))
    note = f"; {left_out:,} left out for {region.name}" if left_out else ""
    return replace(spots.take(keep), coordinates=spots.coordinates + note)


def restrict_grid(grid: Grid, region: Path) -> Grid:
    """Keep the positions of a grid whose centers are in a polygon; raises as `restrict_spots` does."""
    spots = restrict_spots(grid.spots, region)
    return replace(grid, spots=spots, skipped=grid.skipped + len(grid.spots) - len(spots))
