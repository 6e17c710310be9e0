"""Which files are made from a map, where each goes, and making them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.atomic import check_writable, remove_stale
from mclst.runtime.errors import InputError, ResourceError
from mclst.runtime.expression_map.reader import Map
from mclst.runtime.report.export.geojson import write_geojson
from mclst.runtime.report.export.spatialdata_store import write_store
from mclst.runtime.report.export.tables import write_csv, write_parquet
from mclst.runtime.report.figures.contact_sheet import picture_map
from mclst.runtime.report.figures.layout import KINDS
from mclst.runtime.report.page.slide_page import Picture, check_viewer, write_slide_page

ENDINGS = {
    "html": ".html",
    "geojson": ".geojson",
    "spatialdata": ".zarr",
    "csv": ".csv",
    "parquet": ".parquet",
}
NEEDED = {"spatialdata": ("spatialdata", "spatialdata"), "parquet": ("pyarrow", "parquet")}
"""Kind of file → the package that writes it, and the extra of mclst that brings it."""
PLOT_DPI = 300


@dataclass(frozen=True)
class Files:
    """What to write from a map.

    html: the page; None: where this installation can make one. html_px: the longest side of its picture of the tissue, where
    the slide is at hand; html_mb: expression in it, about, in MB. geojson: detections for QuPath, measuring
    `geojson_genes`, by default the 50 most structured. spatialdata: a zarr store. plot: genes to draw in one figure of
    kind `plot_format`. csv, parquet: all values as a table.
    """

    html: bool | None = None
    html_px: int = 4000
    html_mb: float = 3.5
    geojson: bool = False
    geojson_genes: tuple[str, ...] = ()
    spatialdata: bool = False
    plot: tuple[str, ...] = ()
    plot_format: str = "png"
    csv: bool = False
    parquet: bool = False

    def __post_init__(self) -> None:
        if self.plot_format not in KINDS:
            raise ValueError(f"plot_format is {self.plot_format!r}; choose one of {', '.join(KINDS)}")

    def ready(self) -> tuple[Files, str]:
        """What this installation can write of what is wished, and a sentence about what it leaves out, or "".

        Raises ResourceError where something that was asked for by name cannot be written.
        """
        for kind, (package, extra) in NEEDED.items():
            if getattr(self, kind) and find_spec(package) is None:
                raise ResourceError(
                    f"{package} is not installed, which --{kind} needs; install mclst[{extra}]"
                )
        if self.html is False:
            return self, ""
        try:
            check_viewer()
        except ResourceError as error:
            if self.html:
                raise
            return replace(self, html=False), str(error)
        return replace(self, html=True), ""

    def check_genes(self, genes: Sequence[str]) -> None:
        """Raise InputError naming the first gene asked for that is not among a map's `genes`."""
        known = set(genes)
        for option, wanted in (("plot", self.plot), ("geojson-genes", self.geojson_genes)):
            for gene in wanted:
                if gene not in known:
                    near = [other for other in genes if other.casefold() == gene.casefold()]
                    hint = f"; it has {near[0]}" if near else ""
                    raise InputError(f"--{option} names {gene}, which the map does not have{hint}")

    def beside(self, map_path: Path) -> dict[str, Path]:
        """Kind → place of every file to write, named after the map."""
        found = {kind: map_path.with_suffix(end) for kind, end in ENDINGS.items() if getattr(self, kind)}
        if self.plot:
            found["plot"] = map_path.with_suffix(f".plot.{self.plot_format}")
        return found


def check_places(places: Mapping[str, Path], *, overwrite: bool) -> None:
    """Raise OutputError where a file is in the way; remove what dead runs left half-written."""
    for kind, place in places.items():
        check_writable(place, overwrite=overwrite, folder=kind == "spatialdata")
        remove_stale(place)


def write_files(
    found: Map,
    files: Files,
    places: Mapping[str, Path],
    *,
    overwrite: bool,
    measured: NDArray[np.floating] | None = None,
    picture: Picture | None = None,
) -> None:
    """Write every file of `places`, each whole or not at all; measured, picture: for the page, see write_slide_page.

    Raises InputError, OutputError or ResourceError.
    """
    for kind, place in places.items():
        if kind == "html":
            write_slide_page(found, place, measured=measured, picture=picture, most_bytes=files.html_mb * 1e6)
        elif kind == "geojson":
            write_geojson(found, place, files.geojson_genes)
        elif kind == "spatialdata":
            write_store(found, place, overwrite=overwrite)
        elif kind == "plot":
            picture_map(found, place, genes=files.plot, dpi=PLOT_DPI)
        elif kind == "csv":
            write_csv(found, place)
        else:
            write_parquet(found, place)
