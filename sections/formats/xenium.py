"""Xenium bundles: cells as they are, or pseudo-spots of transcripts, in level-0 px of the H&E slide.

Layout: 10x Genomics, "Xenium Output Files at a Glance" (Xenium Onboard Analysis 1 to 4). Positions are in µm;
divided by `pixel_size` of experiment.xenium they are px of the morphology image. The alignment matrix that
Xenium Explorer exports maps px of the H&E slide to px of the morphology image.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.sections.counts import counts_csr, require_unique_spots
from mclst.sections.errors import SectionError
from mclst.sections.formats.images import find_image
from mclst.sections.formats.source import SectionSource, list_folder
from mclst.sections.location import SlideLocation, local_path
from mclst.sections.section import Section
from mclst.sections.tables.cells import MAX_COORDINATE
from mclst.sections.tables.layouts import XENIUM_CENTROID, XENIUM_EXPERIMENT
from mclst.sections.tables.parquet import stream_columns
from mclst.sections.tables.synonyms import synonyms_of
from mclst.sections.tables.text_file import MAX_LIST_BYTES, read_text
from mclst.sections.tenx.matrix import is_matrix_folder, read_features, read_matrix
from mclst.sections.tenx.transcripts import count_transcripts

MATRIX = "cell_feature_matrix"
CELLS, TRANSCRIPTS = "cells.parquet", "transcripts.parquet"
CELL_ID = "cell_id"
SLIDE = "he_image.ome.tif"
"""End of the slide's name; 10x's public bundles have NAME_he_image.ome.tif."""
ALIGNMENT = "alignment.csv"
"""What follows a slide's name without .ome.tif: NAME_he_imagealignment.csv."""
AS_CELLS = "cells"
PSEUDO_SPOTS = re.compile(r"(\d{1,3})(?:/(\d{1,3}))?", re.ASCII)
MAX_SKEW = 0.05
"""Difference of the two scales of an alignment, above which it tells no µm per px."""


@dataclass(frozen=True)
class Alignment:
    """µm of a bundle → level-0 px of its slide.

    matrix: float64 [2, 3]: (x, y) = matrix @ (x_um, y_um, 1).  mpp: µm per px of the slide, None if skewed.
    """

    matrix: NDArray[np.float64]
    mpp: float | None

    def __call__(self, xy_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Level-0 px [n, 2] of positions in µm [n, 2]."""
        return xy_um @ self.matrix[:, :2].T + self.matrix[:, 2]


def find(folder: Path, bins: str | None = None) -> dict[str, SectionSource]:
    """Find the bundles of a folder: the folder itself, or its sub-folders."""
    source = source_of(folder, bins)
    if source is not None:
        return {source.name: source}
    sources = [source_of(entry, bins) for entry in list_folder(folder) if entry.is_dir()]
    return {source.name: source for source in sources if source is not None}


def source_of(folder: Path, bins: str | None = None) -> SectionSource | None:
    """Describe a bundle (or a folder that holds it as `outs/`) as a section; None if it is none.

    bins: "cells" (the default), or PITCH or PITCH/DIAMETER in µm of pseudo-spots.
    """
    bundle = next(
        (place for place in (folder, folder / "outs") if (place / XENIUM_EXPERIMENT).is_file()), None
    )
    if bundle is None:
        return None
    resolved = folder.resolve()
    name = (resolved.parent if resolved.name == "outs" else resolved).name.removesuffix("_outs")
    places = tuple(dict.fromkeys((bundle, folder, folder.parent, folder.parent / "images")))
    bins = bins or AS_CELLS
    spots = bundle / (CELLS if bins == AS_CELLS else TRANSCRIPTS)
    if not spots.is_file():
        raise SectionError(f"{bundle}: there is no {spots.name}, which --bin {bins} needs; copy it again")
    image = _own_slide(bundle) or find_image(name, places)
    return SectionSource(name, "xenium", _matrix(bundle), spots, image, places=places, bins=bins)


def read(source: SectionSource) -> Section:
    """Read a bundle's cells, or count its pseudo-spots; genes are the features of type Gene Expression.

    Raises SectionError if a file is damaged, a cell has no position, or the slide has no alignment.
    """
    assert source.spots is not None
    alignment = _read_alignment(source)
    if source.bins != AS_CELLS:
        return _pseudo_spots(source, source.spots, alignment)
    matrix = read_matrix(source.path)
    require_unique_spots(matrix.spot, source.path)
    xy_um = _cell_centers(source.spots, source.path, matrix.spot)
    return Section(
        name=source.name,
        path=source.path,
        genes=matrix.genes,
        spot=matrix.spot,
        counts=counts_csr(matrix.counts, source.path, matrix.spot, matrix.genes),
        array_xy=None,
        xy_px=None if alignment is None else alignment(xy_um),
        image=source.image,
        counts_from="cells",
        synonyms=synonyms_of(matrix.genes.tolist(), [matrix.ids.tolist()]),
        mpp=None if alignment is None else alignment.mpp,
    )


def _pseudo_spots(source: SectionSource, transcripts: Path, alignment: Alignment | None) -> Section:
    match = PSEUDO_SPOTS.fullmatch(source.bins)
    pitch = 0 if match is None else int(match[1])
    diameter = None if match is None or match[2] is None else int(match[2])
    if pitch < 1 or (diameter is not None and not 1 <= diameter <= pitch):
        raise SectionError(
            f"--bin {source.bins} is no pseudo-spot; give cells, PITCH or PITCH/DIAMETER in whole µm, "
            "such as 100 or 100/55, the diameter up to the pitch"
        )
    genes, ids = read_features(source.path)
    counts, places = count_transcripts(transcripts, genes, pitch, diameter)
    xy_um: NDArray[np.float64] = (places.astype(np.float64) + 0.5) * pitch
    return Section(
        name=source.name,
        path=transcripts,
        genes=genes,
        spot=np.array([f"{column}x{row}" for column, row in places.tolist()]),
        counts=counts,
        array_xy=places,
        xy_px=None if alignment is None else alignment(xy_um),
        image=source.image,
        counts_from="transcripts",
        synonyms=synonyms_of(genes.tolist(), [ids.tolist()]),
        mpp=None if alignment is None else alignment.mpp,
    )


def _matrix(bundle: Path) -> Path:
    table, folder = bundle / f"{MATRIX}.h5", bundle / MATRIX
    if table.is_file():
        return table
    if not is_matrix_folder(folder):
        raise SectionError(f"{bundle}: there is no {MATRIX}.h5; the bundle is incomplete")
    return folder


def _own_slide(bundle: Path) -> Path | None:
    """The H&E slide in a bundle, whatever its name begins with."""
    slides = [entry for entry in list_folder(bundle) if entry.name.endswith(SLIDE)]
    if len(slides) > 1:
        raise SectionError(f"{slides[0]} and {slides[1]} both are H&E images of one bundle; keep one")
    return slides[0] if slides else None


def _cell_centers(cells: Path, matrix: Path, spot: NDArray[np.str_]) -> NDArray[np.float64]:
    """Centroids of the matrix's cells, µm, float64 [n, 2]."""
    row_of: dict[str, int] = {}
    parts = []
    for names, x, y in stream_columns(cells, [CELL_ID], XENIUM_CENTROID):
        for name in names.tolist():
            text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
            if text in row_of:
                raise SectionError(f"{cells}: cell {text[:40]!r} is there twice; a cell may appear once")
            row_of[text] = len(row_of)
        parts.append(np.column_stack([x, y]).astype(np.float64))
    rows = np.array([row_of.get(str(name), -1) for name in spot], np.int64)
    if (rows < 0).any():
        raise SectionError(
            f"{cells}: {np.count_nonzero(rows < 0)} of {len(spot)} cells of {matrix.name} have no position, "
            f"the first is {spot[np.argmax(rows < 0)]}; the files do not belong together"
        )
    centers: NDArray[np.float64] = np.concatenate(parts)[rows]
    if (invalid := ~(np.abs(centers) <= MAX_COORDINATE).all(axis=1)).any():
        row = int(np.argmax(invalid))
        raise SectionError(f"{cells}: cell {spot[row]} is at {centers[row].tolist()}; give finite µm")
    return centers


def _read_alignment(source: SectionSource) -> Alignment | None:
    """The way from µm to px of the section's slide; None where there is neither slide nor matrix."""
    bundle = source.path.parent
    path = alignment_of(source)
    if path is None:
        if source.image is None:
            return None
        raise SectionError(
            f"{source.image}: there is no alignment of this slide to {bundle.name}; export the matrix from "
            f"Xenium Explorer as {_bare(source.image)}{ALIGNMENT} beside it, or give there 1,0,0 0,1,0 0,0,1 "
            "in three lines for a slide that has the morphology image's pixels"
        )
    pixel_size = _pixel_size(bundle / XENIUM_EXPERIMENT)
    to_morphology = _read_matrix_csv(path)
    to_pixels = np.diag([1 / pixel_size, 1 / pixel_size, 1])
    to_slide = np.asarray(np.linalg.inv(to_morphology) @ to_pixels, np.float64)
    major, minor = np.linalg.svd(to_morphology[:2, :2], compute_uv=False)
    mpp = pixel_size * math.sqrt(major * minor) if major <= minor * (1 + MAX_SKEW) else None
    return Alignment(to_slide[:2], mpp)


def alignment_of(source: SectionSource) -> Path | None:
    """Find the matrix named after a section's slide, beside it or in the bundle; else the bundle's only one.

    None if there is none; SectionError if the bundle has several, of other names.
    """
    bundle, image = source.path.parent, source.image
    if image is not None:
        named = f"{_bare(image)}{ALIGNMENT}"
        beside = local_path(image)
        for place in (*([] if beside is None else [beside.parent / named]), bundle / named):
            if place.is_file():
                return place
    others = [entry for entry in list_folder(bundle) if entry.name.endswith(f"he_image{ALIGNMENT}")]
    if len(others) > 1:
        raise SectionError(f"{others[0]} and {others[1]} both are alignments of one bundle; keep one")
    return others[0] if others else None


def _bare(image: SlideLocation) -> str:
    """A slide's name without its suffix, and without .ome."""
    return image.stem.removesuffix(".ome")


def _pixel_size(path: Path) -> float:
    try:
        experiment: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SectionError(f"{path}: the experiment cannot be read ({error}); copy it again") from error
    size = experiment.get("pixel_size") if isinstance(experiment, dict) else None
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0.001 <= size <= 1000:
        raise SectionError(f"{path}: pixel_size is {size!r}; give µm per px of the morphology image")
    return float(size)


def _read_matrix_csv(path: Path) -> NDArray[np.float64]:
    """Px of the slide → px of the morphology image, float64 [3, 3]."""
    text = read_text(path, max_unpacked=MAX_LIST_BYTES)
    try:
        rows = [[float(cell) for cell in line.split(",")] for line in text.split("\n") if line.strip()]
        matrix = np.array(rows, np.float64)
    except ValueError as error:
        raise SectionError(
            f"{path}: the alignment is no table of numbers ({error}); export it again"
        ) from error
    affine = matrix.shape == (3, 3) and np.isfinite(matrix).all() and matrix[2].tolist() == [0, 0, 1]
    if not affine or abs(np.linalg.det(matrix)) < 1e-9:
        raise SectionError(
            f"{path}: the alignment is no invertible 3 x 3 matrix with the last row 0,0,1; export it again"
        )
    return matrix
