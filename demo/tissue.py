"""Write a synthetic measured section: an H&E slide, a table of spots, and counts with planted programs.

The layout is a folder of legacy Spatial Transcriptomics sections: counts/NAME.tsv.gz,
spots/NAME_selection.tsv, images/NAME.tif, and genes.txt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray

from mclst.demo.domains import CELL_PX, make_layout
from mclst.demo.gene_programs import GENES, expected_counts, sample_counts
from mclst.demo.staining import render_he

TILE_PX = 256
MIN_LEVEL_PX = 512


@dataclass(frozen=True)
class SyntheticSection:
    """Files of a synthetic section, and the truth behind its counts.

    name: the section.
    image, counts, spots: files written.
    genes: str [G].
    spot: str [n], `XxY` of the array coordinates.
    array_xy: int64 [n, 2] (x, y) on the spot array.
    xy_px: float64 [n, 2], center (x, y) in level-0 px.
    expected: float64 [n, G], transcripts expected before depth and noise.
    """

    name: str
    image: Path
    counts: Path
    spots: Path
    genes: tuple[str, ...]
    spot: tuple[str, ...]
    array_xy: NDArray[np.int64]
    xy_px: NDArray[np.float64]
    expected: NDArray[np.float64]


def write_section(
    folder: Path,
    name: str,
    seed: int,
    *,
    size_px: int = 4000,
    mpp: float = 0.5,
    pitch_um: float = 90.0,
    spot_um: float = 60.0,
    depth: float = 3000.0,
) -> SyntheticSection:
    """Write one section to `folder`, created if missing; the same arguments give the same files.

    size_px: side of the slide, level-0 px, a multiple of 8; 4000 gives some 280 spots, 400 (with pitch_um=25)
        some 30.
    mpp: µm per level-0 px, written into the slide.
    pitch_um, spot_um: distance between spots on the square array, and a spot's diameter, µm.
    depth: transcripts of an average spot over all genes.
    Raises ValueError if size_px is not a multiple of 8, or a length or depth is not above 0.
    """
    if size_px < 8 * CELL_PX or size_px % CELL_PX:
        raise ValueError(f"size_px is {size_px}; give a multiple of {CELL_PX}, {8 * CELL_PX} or more")
    if not min(mpp, pitch_um, spot_um, depth) > 0:
        raise ValueError(
            f"mpp, pitch, spot and depth are {mpp}, {pitch_um}, {spot_um}, {depth}; give numbers above 0"
        )
    # Independent generators: changing one step leaves the others as they are.
    layout = make_layout(np.random.default_rng([seed, 0]), size_px, mpp)
    array_xy, xy_px = spot_array(np.random.default_rng([seed, 1]), size_px, pitch_um / mpp)
    on_tissue = layout.at(layout.tissue, xy_px) > 0.9
    mean = expected_counts(layout, xy_px[on_tissue], spot_um)
    counts = sample_counts(np.random.default_rng([seed, 2]), mean, depth)
    picture = render_he(np.random.default_rng([seed, 3]), layout)

    image = folder / "images" / f"{name}.tif"
    matrix = folder / "counts" / f"{name}.tsv.gz"
    selection = folder / "spots" / f"{name}_selection.tsv"
    for path in (image, matrix, selection):
        path.parent.mkdir(parents=True, exist_ok=True)
    spot = tuple(f"{x}x{y}" for x, y in array_xy[on_tissue])
    write_slide(image, picture, mpp)
    table = pd.DataFrame(counts, index=pd.Index(spot), columns=pd.Index(GENES))
    table.to_csv(matrix, sep="\t", compression={"method": "gzip", "mtime": 0})
    write_selection(selection, array_xy, xy_px, on_tissue, pitch_um / mpp)
    (folder / "genes.txt").write_text("\n".join(GENES) + "\n", encoding="utf-8")
    return SyntheticSection(
        name, image, matrix, selection, GENES, spot, array_xy[on_tissue], xy_px[on_tissue], mean
    )


def spot_array(
    rng: np.random.Generator, size_px: int, pitch_px: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Square array over the slide: array (x, y) int64 [n, 2] from 1, centers float64 [n, 2] in level-0 px.

    Spot centers have a small random offset, as on a real array.
    """
    count = max(int((size_px - pitch_px) // pitch_px) + 1, 1)
    first = (size_px - (count - 1) * pitch_px) / 2
    x, y = np.meshgrid(np.arange(count), np.arange(count))
    array_xy = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)
    xy_px = first + array_xy * pitch_px + rng.normal(0, 0.012 * pitch_px, array_xy.shape)
    return array_xy + 1, np.round(xy_px, 2)


def write_selection(
    path: Path,
    array_xy: NDArray[np.int64],
    xy_px: NDArray[np.float64],
    selected: NDArray[np.bool_],
    pitch_px: float,
) -> None:
    """Write the legacy ST table of all spots; `selected` marks those under tissue."""
    printed = array_xy + (xy_px - xy_px.min(axis=0)) / pitch_px - (array_xy - array_xy.min(axis=0))
    table = pd.DataFrame(
        {
            "x": array_xy[:, 0],
            "y": array_xy[:, 1],
            "new_x": printed[:, 0].round(3),
            "new_y": printed[:, 1].round(3),
            "pixel_x": xy_px[:, 0],
            "pixel_y": xy_px[:, 1],
            "selected": selected.astype(int),
        }
    )
    table.to_csv(path, sep="\t", index=False)


def write_slide(path: Path, picture: NDArray[np.uint8], mpp: float) -> None:
    """Write a tiled JPEG pyramid, halved until MIN_LEVEL_PX, with resolution tags from `mpp` (µm/px)."""
    level = picture
    with tifffile.TiffWriter(path) as tiff:
        scale = 1
        while True:
            tiff.write(
                level,
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 88},
                tile=(TILE_PX, TILE_PX),
                subfiletype=1 if scale > 1 else 0,
                resolution=(1e4 / (mpp * scale), 1e4 / (mpp * scale)),
                resolutionunit="CENTIMETER",
                description="made-up tissue, not a real specimen" if scale == 1 else None,
                metadata=None,
                software=False,
            )
            if max(level.shape) <= MIN_LEVEL_PX:
                return
            height, width = level.shape[0] // 2 * 2, level.shape[1] // 2 * 2
            quads = level[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
            level = (quads.sum(axis=(1, 3), dtype=np.uint16) // 4).astype(np.uint8)
            scale *= 2
