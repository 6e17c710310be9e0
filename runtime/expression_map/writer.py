"""The expression map: rows are written in any order, then published as one complete `.h5ad`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from mclst.runtime.atomic import check_writable, sync_folder
from mclst.runtime.decoding.area_mean import area_mean, window_edges
from mclst.runtime.errors import OutputError, SpotsError
from mclst.runtime.expression_map.h5ad_layout import H5adImage
from mclst.runtime.expression_map.h5ad_values import (
    spots_table,
    storable_names,
    storable_tree,
    text_array,
)
from mclst.runtime.expression_map.layers import LAYERS, MakeLayers, layers_are_intact, write_layers
from mclst.runtime.expression_map.morans_i import nearest_spots
from mclst.runtime.expression_map.reader import Map, interval_layers, load_small, recorded_mpp
from mclst.runtime.expression_map.row_file import RowFile
from mclst.runtime.expression_map.row_writer import RowWriter
from mclst.sections.columns import Columns
from mclst.sections.section import Spots

HIRES_PX, LOWRES_PX = 2000, 600
"""Longest sides of the tissue images, as Space Ranger writes them."""
MARGIN_BYTES = 16 << 20
"""Space reserved besides X and the tables: both tissue images uncompressed, and some spare."""
OWN_COLUMNS = ("nearest_distance", "effective_k")
DEFAULT_SPOT_PX = 100.0


class _Tissue(NamedTuple):
    """The slide's key and picture [h, w, 3]; scales: px per level-0 px."""

    library: str
    hires: NDArray[np.uint8]
    scale: float
    lowres_scale: float


class MapWriter(RowWriter):
    """Writes one expression map; a context manager that leaves a complete map, or rows to resume from.

    Rows go straight to the bytes of X in a hidden file next to `path`. Its space is reserved at the start, so
    memory does not grow with spots x genes, and a full disk is found before the work.

    Parameters
    ----------
    path : Path
        The `.h5ad` to write.
    genes : sequence of str
        Distinct gene names, in the order of the expression.
    spots : Spots
        At least one.
    overwrite : bool
        Whether `path` may exist.
    measured : bool
        Whether results are MeasuredResults.
    of_genes : mapping of str to array [G], optional
        Columns of `var`.
    own_columns : sequence of str
        Further columns of `obs` that `publish` gets; those of the spots table give way.
    intervals : bool
        Whether the map gets the layers that `publish` makes.

    Attributes
    ----------
    done : bool [n]
        Spots whose row is written; the others become NaN in the map.

    Raises
    ------
    OutputError
        If the output exists without `overwrite`, another run is writing it, its folder is missing or
        read-only, or the space is short.
    SpotsError
        If a `.h5ad` cannot hold the spots table.
    ValueError
        If there is no spot, no gene or a repeated gene.
    """

    def __init__(
        self,
        path: Path,
        *,
        genes: Sequence[str],
        spots: Spots,
        overwrite: bool,
        measured: bool = False,
        of_genes: Mapping[str, NDArray[Any]] | None = None,
        own_columns: Sequence[str] = (),
        intervals: bool = False,
    ) -> None:
        super().__init__(path, (len(spots), len(genes)), measured=measured)
        self.spots = spots
        if min(self.shape) < 1 or len(set(genes)) != len(genes):
            raise ValueError(f"a map needs spots and distinct genes, not {self.shape[0]} x {self.shape[1]}")
        check_writable(path, overwrite=overwrite)
        self._overwrite = overwrite
        self._checksums: dict[str, list[int]] = {}
        self._tissue: _Tissue | None = None
        self._image = H5adImage(self.shape, LAYERS if intervals else ())
        try:
            with self._refusals():
                self._genes = Columns(text_array(genes), of_genes or {})
                self._image.put("var", self._genes)
                self._table, tables_bytes = _checked_table(spots, (*OWN_COLUMNS, *own_columns))
                rows = self._lock(self._image.offset)
                size = self._image.end + tables_bytes + MARGIN_BYTES
                self._check_space(rows, size)
                rows.preallocate(size)
        except BaseException:
            self.close()
            raise

    def _check_space(self, rows: RowFile, size: int) -> None:
        folder = rows.lock.rows.parent
        reserved = os.fstat(rows.lock.handle).st_blocks * 512  # by a stopped run
        free = shutil.disk_usage(folder).free
        if free + reserved < size:
            raise OutputError(
                f"{self.path} needs {size / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB free; "
                "free space or choose another --out"
            )

    def put_tissue(self, image: NDArray[np.uint8], image_scale: float, library_id: str) -> None:
        """Put the slide's picture into the map; once, in any thread, before `publish`.

        Parameters
        ----------
        image : uint8 [h, w, 3]
            The tissue, RGB; reduced to 2000 px on its longer side if larger.
        image_scale : float
            Image pixels per level-0 px.
        library_id : str
            The slide's key in `uns["spatial"]`.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image_scale > 0:
            raise ValueError(
                f"image is {image.dtype} {image.shape} at {image_scale} px per px, not uint8 [h, w, 3]"
            )
        library = storable_names([library_id], unnamed="slide")[0]
        hires, scale = downscale(image, image_scale, HIRES_PX)
        lowres, lowres_scale = downscale(hires, scale, LOWRES_PX)
        self._image.put("uns", {"spatial": {library: {}}})
        self._image.put(f"uns/spatial/{library}/images", {"hires": hires, "lowres": lowres}, compress=True)
        self._tissue = _Tissue(library, hires, scale, lowres_scale)

    def publish(
        self,
        *,
        spot_diameter_px: float | None,
        run: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
        columns: Mapping[str, NDArray[Any]] | None = None,
        layers: MakeLayers | None = None,
        before_publish: Callable[[Map], None] = lambda expression_map: None,
    ) -> Path:
        """Complete the map, verify that it reads back, and rename it to its final path.

        Parameters
        ----------
        spot_diameter_px : float or None
            In level-0 px; None: half the usual distance between neighboring spots.
        run : mapping
            How the map was made, for `uns["mclst"]`.
        metadata : mapping of str to str, optional
            More text for the slide's `metadata` in `uns["spatial"]`.
        columns : mapping of str to array [n], optional
            The `own_columns` of `obs`.
        layers : callable, optional
            Makes the layers with `intervals`; see MakeLayers.
        before_publish : callable, optional
            Called with the complete, still hidden map, to write the files that go with it. So a map that is
            visible has all its files.

        Returns
        -------
        Path
            The map.

        Raises
        ------
        OutputError
            If the file system refuses or the map does not read back as written.
        """
        if self._tissue is None:
            raise ValueError("put_tissue comes before publish")
        diameter = estimate_spot_diameter(self.spots.xy_px) if spot_diameter_px is None else spot_diameter_px
        own = {**self._neighbor_columns(), **(columns or {})}
        table = Columns(self._table.index, {**self._table, **own})
        self._image.put("obs", table)
        record = storable_tree(run)
        self._put_rest(self._tissue, diameter, record, metadata or {})
        segments, size = self._image.close()
        rows = self._open_rows
        with self._refusals():
            rows.fill_missing()
            if layers is not None:
                self._checksums = write_layers(rows, self._image.layer_offsets, layers)
            for offset, content in segments:
                rows.write_bytes(content, offset)
            os.ftruncate(rows.lock.handle, size)
            os.fsync(rows.lock.handle)
            self._verify(rows, segments, size)
            # The views must go before the buffer they look into can be freed.
            segments.clear()
            self._image.forget()
            with self._finished(self._tissue, table, diameter, record) as expression_map:
                before_publish(expression_map)
            if not self._overwrite and os.path.lexists(self.path):
                raise OutputError(f"{self.path} appeared meanwhile; choose another --out or add --overwrite")
            os.replace(rows.lock.rows, self.path)
            sync_folder(rows.lock.rows.parent)
        # The journal goes after the rename: a crash in between leaves it without rows, which the next run
        # notices.
        self._rows = None
        rows.lock.journal.unlink(missing_ok=True)
        rows.close(keep=True)
        return self.path

    def _put_rest(
        self, tissue: _Tissue, diameter: float, record: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> None:
        """Put everything but X, layers, tables and pictures."""
        for empty in ("varm", "obsp", "varp", *(() if self._image.layer_offsets else ("layers",))):
            self._image.put(empty, {})
        self._image.put("obsm", {"spatial": np.asarray(self.spots.xy_px, np.float64)})
        self._image.put("uns/mclst", record)
        scales = {"tissue_hires_scalef": tissue.scale, "tissue_lowres_scalef": tissue.lowres_scale}
        slide = f"uns/spatial/{tissue.library}"
        self._image.put(f"{slide}/scalefactors", {**scales, "spot_diameter_fullres": float(diameter)})
        texts = {
            "software_version": f"mclst {version('mclst')}",
            "spots_table": self.spots.path.name,
            **metadata,
        }
        self._image.put(f"{slide}/metadata", storable_tree({key: str(text) for key, text in texts.items()}))

    @contextmanager
    def _finished(
        self, tissue: _Tissue, table: Columns, diameter: float, record: Mapping[str, Any]
    ) -> Iterator[Map]:
        """The map as `open_map` would read it: X and layers from the file, all else as it was written."""
        # Without HDF5's file lock: this process still holds the file.
        with h5py.File(self._open_rows.lock.rows, "r", locking=False) as file:
            yield Map(
                path=self._open_rows.lock.rows,
                title=tissue.library,
                genes=tuple(str(gene) for gene in self._genes.index),
                expression=load_small(file["X"]),
                obs=table,
                xy_px=np.asarray(self.spots.xy_px, np.float64),
                image=tissue.hires,
                image_scale=tissue.scale,
                spot_diameter_px=float(diameter),
                mpp=recorded_mpp(record),
                provenance=record,
                var=self._genes,
                layers=interval_layers(file, self.shape),
            )

    @property
    def rows(self) -> RowFile:
        """The rows so far, and what was measured of each."""
        return self._open_rows

    def _neighbor_columns(self) -> dict[str, NDArray[np.float32]]:
        """The map's own columns; none without a bank, since no spot then has neighbors."""
        rows = self._open_rows
        if np.isnan(rows.nearest).all():
            return {}
        return dict(zip(OWN_COLUMNS, (rows.nearest, rows.effective_k), strict=True))

    def _verify(self, rows: RowFile, segments: list[tuple[int, memoryview]], size: int) -> None:
        handle = rows.lock.handle
        if hasattr(os, "posix_fadvise"):  # drop the page cache, so that the disk itself is read
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        intact = os.fstat(handle).st_size == size
        for offset, content in segments:
            intact &= rows.contains(content, offset)
        with h5py.File(rows.lock.rows, "r", locking=False) as file:
            matrix = file["X"]
            intact &= matrix.shape == self.shape and matrix.dtype == np.dtype("<f4")
            intact = intact and rows.verify(matrix) and layers_are_intact(file, self._checksums)
        if not intact:
            self._keep = False
            raise OutputError(f"{self.path} does not read back as written; check the disk and run again")

    def close(self) -> int:
        """Release an unpublished map; return the number of rows kept. May be called again."""
        self._image.abandon()
        return super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        count = self.close()
        if count and error is not None:
            error.add_note(
                f"{count:,} of {self.shape[0]:,} spots are kept beside {self.path}; "
                "the same command resumes from them"
            )


def downscale(image: NDArray[np.uint8], scale: float, longest_px: int) -> tuple[NDArray[np.uint8], float]:
    """Reduce uint8 [h, w, 3] to at most `longest_px` a side; also return its scale (px per level-0 px)."""
    height, width = image.shape[:2]
    factor = longest_px / max(height, width)
    if factor >= 1:
        return image, float(scale)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = area_mean(image, window_edges(height, size[1]), window_edges(width, size[0]))
    return small, float(scale) * max(size) / max(height, width)


def estimate_spot_diameter(xy_px: NDArray[np.float64]) -> float:
    """Half the median distance between nearest neighbors, as on Visium and ST arrays.

    xy_px: float64 [n, 2], level-0 px, as is the result. A lone spot, or coinciding spots, count as 100 px.
    """
    if len(xy_px) < 2:
        return DEFAULT_SPOT_PX
    distance = float(np.median(nearest_spots(xy_px, 1)[0]))
    return distance / 2 if distance > 0 else DEFAULT_SPOT_PX


def _checked_table(spots: Spots, reserved: Sequence[str]) -> tuple[Columns, int]:
    """`obs` without the map's own columns, and the bytes to reserve; SpotsError if no `.h5ad` can hold it."""
    table = spots_table(spots, reserved=reserved)
    trial = H5adImage((1, 1))
    try:
        trial.put("obs", table)
        segments, _ = trial.close()
    except (TypeError, ValueError, RuntimeError, OSError, KeyError) as error:
        raise SpotsError(
            f"{spots.path}: its {len(table)} columns do not fit into a .h5ad ({error}); leave out those "
            "not needed"
        ) from error
    return table, 2 * sum(len(content) for _, content in segments)
