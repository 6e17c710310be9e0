"""The expression map: rows are written as they come, in any order, and published as one `.h5ad`, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from mclst.kernels.definition.result import RetrievalResult
from mclst.runtime.atomic import check_writable, sync_folder
from mclst.runtime.errors import OutputError, SpotsError
from mclst.runtime.expression_map.h5ad_layout import H5adImage
from mclst.runtime.expression_map.h5ad_values import (
    spots_table,
    storable_names,
    storable_tree,
    text_index,
)
from mclst.runtime.expression_map.lock import RunLock, claim
from mclst.runtime.expression_map.row_file import ResumeState, RowFile
from mclst.sections.section import Spots

HIRES_PX, LOWRES_PX = 2000, 600
"""Longest sides of the tissue images, as Space Ranger writes them."""
MARGIN_BYTES = 16 << 20
"""Room kept beside X and the tables: both tissue images without compression, and change."""
OWN_COLUMNS = ("nearest_distance", "effective_k")


class MapWriter:
    """Writes one expression map; a context manager that leaves the whole map, or what the next run carries on with.

    The rows go straight to the bytes of X in a hidden file beside `path`, whose space is taken at the start:
    memory does not grow with spots x genes, and a full disk is found before the work, not after it.
    Before `begin` a failure leaves nothing; after it, what is written stays for the next run's `carry_on`.
    """

    def __init__(self, path: Path, *, genes: Sequence[str], spots: Spots, overwrite: bool) -> None:
        """Take the place and the space for a map of float32 [len(spots), len(genes)] at `path`.

        Raises OutputError where the output exists without `overwrite`, another run is writing it, its folder is
        missing or read-only, or the space is short; SpotsError where a `.h5ad` cannot hold the spots table;
        ValueError where there is no spot, no gene or a repeated gene.
        """
        self.path = path
        self.spots = spots
        self.shape = (len(spots), len(genes))
        if min(self.shape) < 1 or len(set(genes)) != len(genes):
            raise ValueError(f"a map needs spots and distinct genes, not {self.shape[0]} x {self.shape[1]}")
        check_writable(path, overwrite=overwrite)
        self._overwrite = overwrite
        self._image = H5adImage(self.shape)
        self._rows: RowFile | None = None
        self._keep = False
        try:
            self._image.put("var", pd.DataFrame(index=text_index(genes)))
            self._table, tables_bytes = _checked_table(spots)
            taken = claim(path)
            # A stopped run's rows are not this run's to lose, whatever goes wrong before it knows them.
            self._keep = taken.keeps and taken.journal.exists()
            self._rows = RowFile(taken, self.shape, self._image.offset)
            size = self._rows.place(self.shape[0]) + tables_bytes + MARGIN_BYTES
            self._check_space(taken, size)
            self._rows.preallocate(size)
        except OSError as error:
            self.close()
            raise _refusal(path, error) from error
        except BaseException:
            self.close()
            raise

    def _check_space(self, taken: RunLock, size: int) -> None:
        held = os.fstat(taken.handle).st_blocks * 512
        free = shutil.disk_usage(taken.rows.parent).free
        if free + held < size:
            raise OutputError(
                f"{self.path} needs {size / 1e6:,.0f} MB and {taken.rows.parent} has {free / 1e6:,.0f} MB free; "
                "free space or choose another --out"
            )

    @property
    def done(self) -> NDArray[np.bool_]:
        """Bool [n]: spots that have their row; the others are NaN in the map."""
        return self._open.done

    @property
    def unwritten(self) -> int:
        """Spots without a row so far; they are NaN in the map."""
        return int(np.count_nonzero(~self.done))

    @property
    def _open(self) -> RowFile:
        if self._rows is None:
            raise ValueError(f"the writer of {self.path} is closed")
        return self._rows

    @property
    def stopped_run(self) -> bool:
        """Whether a stopped run of this output has left something; `carry_on` or `begin` decide what becomes of it."""
        return self._open.claim.journal.exists()

    @property
    def kept(self) -> int:
        """Rows that stay for the next run if this one stops now."""
        return 0 if self._rows is None else self._rows.kept

    @property
    def keeps(self) -> bool:
        """Whether a stopped run can be carried on here; not on a file system without locks."""
        return self._open.claim.keeps

    def carry_on(self, made_of: Mapping[str, str]) -> ResumeState | None:
        """Take over the rows of a stopped run of the same inputs, or say why not; None where there was none.

        made_of: what the rows come from, by name: hashes, settings, versions. Raises OutputError.
        """
        try:
            return self._open.carry_on(made_of)
        except OSError as error:
            raise _refusal(self.path, error) from error

    def begin(self, made_of: Mapping[str, str]) -> None:
        """From now on what is written outlives this process; earlier remains are given up. Raises OutputError."""
        try:
            self._keep = False
            self._open.begin(made_of)
        except OSError as error:
            raise _refusal(self.path, error) from error

    def write(self, rows: NDArray[np.integer[Any]], found: RetrievalResult) -> None:
        """Write some rows; a row written again is replaced.

        rows: int [b], distinct, 0 … n-1, places in the spots table. found: of these b spots.
        Raises OutputError where the file system refuses; ValueError where the arrays do not fit.
        """
        given = np.shape(found.expression)
        if given != (len(rows), self.shape[1]) or not len(rows) == len(found.nearest) == len(
            found.effective_k
        ):
            raise ValueError(f"{len(rows)} rows of {self.shape[1]} genes cannot take {given} values")
        if not len(rows):
            return
        if np.min(rows) < 0 or np.max(rows) >= self.shape[0] or len(np.unique(rows)) < len(rows):
            raise ValueError(f"rows must be distinct and in 0 … {self.shape[0] - 1}")
        try:
            self._open.write(rows, found)
        except OSError as error:
            raise _refusal(self.path, error) from error

    def publish(
        self,
        *,
        image: NDArray[np.uint8],
        image_scale: float,
        spot_diameter_px: float | None,
        library_id: str,
        run: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
        beside: Callable[[Path], None] = lambda path: None,
    ) -> Path:
        """Complete the map, prove that it reads back, and rename it to its place; returns that place.

        image: uint8 [h, w, 3], the tissue; shrunk to 2000 px where larger. image_scale: its px per level-0 px.
        spot_diameter_px: level-0 px, or None: half the usual distance between neighbouring spots.
        library_id: the slide's name in `uns["spatial"]`. run: what made the map, for `uns["mclst"]`.
        metadata: more text for `uns["spatial"][library_id]["metadata"]`. beside: called with the complete, still hidden
        map, to make what belongs beside it: where the map stands, all else does.
        Raises OutputError where the file system refuses or the map does not read back as written.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image_scale > 0:
            raise ValueError(
                f"image is {image.dtype} {image.shape} at {image_scale} px per px, not uint8 [h, w, 3]"
            )
        diameter = usual_spot_diameter(self.spots.xy_px) if spot_diameter_px is None else spot_diameter_px
        segments, size = self._surroundings(image, image_scale, diameter, library_id, run, metadata or {})
        rows = self._open
        try:
            rows.blank_the_rest()
            for offset, content in segments:
                rows.put(content, offset)
            os.ftruncate(rows.claim.handle, size)
            os.fsync(rows.claim.handle)
            self._verify(rows, segments, size)
            segments.clear()
            self._image.forget()
            beside(rows.claim.rows)
            if not self._overwrite and os.path.lexists(self.path):
                raise OutputError(f"{self.path} appeared meanwhile; choose another --out or add --overwrite")
            os.replace(rows.claim.rows, self.path)
            sync_folder(rows.claim.rows.parent)
        except OSError as error:
            raise _refusal(self.path, error) from error
        self._rows = None
        rows.claim.journal.unlink(missing_ok=True)
        rows.close(keep=True)
        return self.path

    def _surroundings(
        self,
        image: NDArray[np.uint8],
        image_scale: float,
        diameter: float,
        library_id: str,
        run: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> tuple[list[tuple[int, memoryview]], int]:
        library = storable_names([library_id], unnamed="slide")[0]
        hires, hires_scale = shrink(image, image_scale, HIRES_PX)
        lowres, lowres_scale = shrink(hires, hires_scale, LOWRES_PX)
        for empty in ("layers", "varm", "obsp", "varp"):
            self._image.put(empty, {})
        table, self._table = self._table, pd.DataFrame()
        self._image.put("obs", table.assign(**self._neighbours()))
        del table
        self._image.put("obsm", {"spatial": np.asarray(self.spots.xy_px, np.float64)})
        self._image.put("uns", {"mclst": storable_tree(run)})
        self._image.put("uns/spatial", {library: {}})
        here = f"uns/spatial/{library}"
        self._image.put(f"{here}/images", {"hires": hires, "lowres": lowres}, compress=True)
        scales = {"tissue_hires_scalef": hires_scale, "tissue_lowres_scalef": lowres_scale}
        self._image.put(f"{here}/scalefactors", {**scales, "spot_diameter_fullres": float(diameter)})
        told = {
            "software_version": f"mclst {version('mclst')}",
            "spots_table": self.spots.path.name,
            **metadata,
        }
        self._image.put(f"{here}/metadata", storable_tree({key: str(value) for key, value in told.items()}))
        return self._image.close()

    def _neighbours(self) -> dict[str, NDArray[np.float32]]:
        """The map's own columns; none where no spot has neighbours, since the network gave the expression itself."""
        rows = self._open
        if np.isnan(rows.nearest).all():
            return {}
        return dict(zip(OWN_COLUMNS, (rows.nearest, rows.effective_k), strict=True))

    def _verify(self, rows: RowFile, segments: list[tuple[int, memoryview]], size: int) -> None:
        handle = rows.claim.handle
        if hasattr(os, "posix_fadvise"):  # so that the disk is read, not the memory of it
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        verify = os.fstat(handle).st_size == size
        for offset, content in segments:
            verify &= rows.holds(content, offset)
        with h5py.File(rows.claim.rows, "r", locking=False) as file:
            matrix = file["X"]
            verify &= matrix.shape == self.shape and matrix.dtype == np.dtype("<f4")
            verify = verify and rows.verify(matrix)
        if not verify:
            self._keep = False
            raise OutputError(f"{self.path} does not read back as written; check the disk and run again")

    def close(self) -> int:
        """Let go of an unpublished map; how many rows stay for the next run. Harmless when called again."""
        self._image.abandon()
        if self._rows is None:
            return 0
        rows, self._rows = self._rows, None
        kept = rows.kept
        rows.close(keep=kept > 0 or self._keep)
        return kept

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = self.close()
        if kept and error is not None:
            error.add_note(
                f"{kept:,} of {self.shape[0]:,} spots are kept beside {self.path}, and the same command carries on with them"
            )


def shrink(image: NDArray[np.uint8], scale: float, longest_px: int) -> tuple[NDArray[np.uint8], float]:
    """An image uint8 [h, w, 3] no longer than `longest_px` on either side, and its scale (px per level-0 px)."""
    height, width = image.shape[:2]
    factor = longest_px / max(height, width)
    if factor >= 1:
        return image, float(scale)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BOX)
    return np.asarray(small), float(scale) * max(size) / max(height, width)


def usual_spot_diameter(xy_px: NDArray[np.float64]) -> float:
    """Half the median distance between nearest neighbours, as on Visium and ST arrays; level-0 px.

    xy_px: float64 [n, 2]. A lone spot, or spots all in one place, count as 100 px.
    """
    if len(xy_px) < 2:
        return 100.0
    distances = np.asarray(cKDTree(xy_px).query(xy_px, k=2)[0])
    distance = float(np.median(distances[:, 1]))
    return distance / 2 if distance > 0 else 100.0


def _checked_table(spots: Spots) -> tuple[pd.DataFrame, int]:
    """`obs` without the map's own columns, and room for it (bytes); a table no file can hold is refused here."""
    table = spots_table(spots, taken=OWN_COLUMNS)
    trial = H5adImage((1, 1))
    try:
        trial.put("obs", table)
        segments, _ = trial.close()
    except (TypeError, ValueError, RuntimeError, OSError, KeyError) as error:
        raise SpotsError(
            f"{spots.path}: its {table.shape[1]} columns do not fit into a .h5ad ({error}); leave out those not needed"
        ) from error
    return table, 2 * sum(len(content) for _, content in segments)


def _refusal(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"{path} cannot be written ({reason}); free space or choose another --out")
