"""The files made from a map: which to write, their paths, writing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mclst.runtime.atomic import check_writable, remove_stale
from mclst.runtime.choices import FIGURE_FORMATS
from mclst.runtime.errors import InputError, ResourceError
from mclst.runtime.report.page.openseadragon import check_viewer

if TYPE_CHECKING:
    from mclst.runtime.report.page.tissue import TissueJpeg

if TYPE_CHECKING:
    from mclst.runtime.expression_map.reader import Map

SUFFIXES = {
    "html": ".html",
    "geojson": ".geojson",
    "spatialdata": ".zarr",
    "seurat": ".seurat",
    "csv": ".csv",
    "parquet": ".parquet",
}
FOLDERS = ("spatialdata", "seurat")
"""Kinds that are folders."""
REQUIRED_PACKAGES = {"spatialdata": ("spatialdata", "spatialdata"), "parquet": ("pyarrow", "parquet")}
"""Kind of file to the package that writes it and the extra of mclst that installs it."""
PLOT_DPI = 300
IMAGE_PX = 2000
"""Longest side of the tissue image in a map, as Space Ranger writes it."""


@dataclass(frozen=True)
class Files:
    """What to write from a map.

    Parameters
    ----------
    html : bool, optional
        The interactive page. None: if the viewer is installed.
    html_px : int
        Longest side of the tissue image in the page, if the slide is available.
    html_mb : float
        Size limit of the page in MB; genes of low spatial structure are left out above it.
    geojson : bool
        Detections for QuPath.
    geojson_genes : tuple of str
        Genes measured in the GeoJSON. Default: the first 50 of the page.
    spatialdata : bool
        A SpatialData zarr store.
    seurat : bool
        A folder that Seurat's Load10X_Spatial opens.
    plot : tuple of str
        Genes to draw in one figure.
    plot_format : {"png", "pdf", "svg"}
        Format of that figure.
    csv, parquet : bool
        All values as a table.
    csv_escape : bool
        Prefix `'` to names in the CSV that a spreadsheet takes for formulas.

    Raises
    ------
    ValueError
        If `plot_format` is unknown.
    """

    html: bool | None = None
    html_px: int = 4000
    html_mb: float = 20.0
    geojson: bool = False
    geojson_genes: tuple[str, ...] = ()
    spatialdata: bool = False
    seurat: bool = False
    plot: tuple[str, ...] = ()
    plot_format: str = "png"
    csv: bool = False
    parquet: bool = False
    csv_escape: bool = False

    def __post_init__(self) -> None:
        if self.plot_format not in FIGURE_FORMATS:
            raise ValueError(
                f"plot_format is {self.plot_format!r}; choose one of {', '.join(FIGURE_FORMATS)}"
            )

    @property
    def picture_px(self) -> int:
        """Longest side of the slide's picture, from which map and page get theirs; of resolved files."""
        return max(IMAGE_PX, self.html_px) if self.html else IMAGE_PX

    def resolve(self) -> tuple[Files, str]:
        """Decide what this installation can write.

        Returns
        -------
        files : Files
            With `html` True or False.
        note : str
            Why the default page is left out, or "".

        Raises
        ------
        ResourceError
            If a requested file needs a missing package or the missing viewer.
        """
        for kind, (package, extra) in REQUIRED_PACKAGES.items():
            if getattr(self, kind) and find_spec(package) is None:
                raise ResourceError(
                    f"--{kind} needs {package}, which is not installed; install mclst[{extra}]"
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
        """Raise InputError if a requested gene is not among `genes`."""
        known = set(genes)
        for option, requested in (("plot", self.plot), ("geojson-genes", self.geojson_genes)):
            for gene in requested:
                if gene not in known:
                    similar = [other for other in genes if other.casefold() == gene.casefold()]
                    hint = f"; it has {similar[0]}" if similar else ""
                    raise InputError(f"--{option} names {gene}, which the map does not have{hint}")

    def paths(self, map_path: Path) -> dict[str, Path]:
        """Return kind of file to its path, named after the map."""
        paths = {
            kind: map_path.with_suffix(suffix) for kind, suffix in SUFFIXES.items() if getattr(self, kind)
        }
        if self.plot:
            paths["plot"] = map_path.with_suffix(f".plot.{self.plot_format}")
        return paths


def check_paths(paths: Mapping[str, Path], *, overwrite: bool) -> None:
    """Raise OutputError if a file cannot be written; remove partial files of dead runs."""
    for kind, path in paths.items():
        check_writable(path, overwrite=overwrite, folder=kind in FOLDERS)
        remove_stale(path)


def write_files(
    expression_map: Map,
    files: Files,
    paths: Mapping[str, Path],
    *,
    overwrite: bool,
    measured: NDArray[np.floating] | None = None,
    tissue: TissueJpeg | None = None,
    cells: Path | None = None,
) -> tuple[str, ...]:
    """Write the files of `paths`, each atomically.

    Parameters
    ----------
    expression_map : Map
    files : Files
        Options of the files.
    paths : mapping of str to Path
        Kind of file to its path, as `Files.paths` returns it.
    overwrite : bool
        Whether to replace a folder.
    measured, tissue
        For the page; see `write_slide_page`.
    cells : Path, optional
        GeoJSON with the spots' outlines; see `write_geojson`.

    Returns
    -------
    tuple of str
        Notes for the user.

    Raises
    ------
    InputError, OutputError, ResourceError
    """
    notes: tuple[str, ...] = ()
    for kind, path in paths.items():
        # What draws and converts takes longer to load than a small map to write: each only where it is used.
        if kind == "html":
            from mclst.runtime.report.page.slide_page import write_slide_page

            notes += write_slide_page(
                expression_map,
                path,
                measured=measured,
                tissue=tissue,
                max_bytes=files.html_mb * 1e6,
                required_genes=(*files.plot, *files.geojson_genes),
            )
        elif kind == "geojson":
            from mclst.runtime.report.export.geojson import write_geojson

            write_geojson(expression_map, path, files.geojson_genes, cells=cells)
        elif kind == "spatialdata":
            from mclst.runtime.report.export.spatialdata_store import write_store

            notes += write_store(expression_map, path, overwrite=overwrite)
        elif kind == "seurat":
            from mclst.runtime.report.export.seurat import write_seurat

            notes += write_seurat(expression_map, path, overwrite=overwrite)
        elif kind == "plot":
            from mclst.runtime.report.figures.contact_sheet import write_contact_sheet

            write_contact_sheet(expression_map, path, genes=files.plot, dpi=PLOT_DPI)
        elif kind == "csv":
            from mclst.runtime.report.export.tables import write_csv

            write_csv(expression_map, path, escape=files.csv_escape)
        else:
            from mclst.runtime.report.export.tables import write_parquet

            write_parquet(expression_map, path)
    return notes
