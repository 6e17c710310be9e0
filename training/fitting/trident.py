"""Features that TRIDENT extracted: an `.h5` per slide, with a row per patch.

TRIDENT (mahmoodlab/TRIDENT) writes `features` [n, F] and `coords` [n, 2], the patches' upper left corners in
level-0 pixels, with the attribute `patch_size_level0`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mclst.export.onnx.graph import preprocess
from mclst.models.fitted import FeatureEncoder
from mclst.models.recipes.build import build_encoder
from mclst.runtime.errors import InputError, SlideError
from mclst.runtime.slide.open import open_slide
from mclst.runtime.tiling.tiles import Tiles, TileShape
from mclst.sections.errors import SectionError
from mclst.sections.hdf5 import open_hdf5
from mclst.training.fitting.features import EncoderSetup, TileFeatures, sample_tiles
from mclst.training.fitting.sections import FitSection

CHECKED_PATCHES = 4
LEAST_COSINE = 0.95
"""Of a patch's stored features with those of the encoder; half precision and other resampling leave 0.99."""
SIZE_TOLERANCE = 0.03


@dataclass(frozen=True)
class Patches:
    """A file's patches. values: float32 [n, F]. centers: float64 [n, 2], level-0 px. side: level-0 px."""

    path: Path
    values: NDArray[np.float32]
    centers: NDArray[np.float64]
    side: float


def read_all_features(
    paths: Sequence[Path], sections: Sequence[FitSection], setup: EncoderSetup, samples: int
) -> dict[str, TileFeatures]:
    """Read the features of every section's spots: those of the patch that covers a spot's center best.

    Parameters
    ----------
    paths : sequence of Path
        Files named SECTION.h5 or after the section's image, or folders of them.
    sections : sequence of FitSection
    setup : EncoderSetup
        What the features are said to come from; a few patches are encoded again to prove it.
    samples : int
        Tiles to keep of each section.

    Raises
    ------
    InputError
        If a section has no file, or a file is no such file, or holds features of another encoder, tile size
        or NaN.
    SlideError
        If the image cannot be read under the patches that are checked.
    """
    if setup.views != (1.0,):
        raise InputError("--from-features holds one field of view per spot; leave --views out")
    files = _files(paths)
    network = FeatureEncoder(setup.recipe, setup.views, build_encoder(setup.recipe, setup.state)).eval()
    result = {}
    for section in sections:
        path = files.get(section.name) or files.get(section.image.stem)
        if path is None:
            raise InputError(
                f"no file of --from-features is named {section.name}.h5 or {section.image.stem}.h5; rename "
                f"it, or leave the section out with --hold-out {section.name}"
            )
        patches = read_patches(path, setup.width)
        result[section.name] = _of_spots(section, patches, setup, network, samples)
    return result


def _files(paths: Sequence[Path]) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f"{path} does not exist; give TRIDENT's .h5 with --from-features")
        for file in sorted(path.glob("*.h5")) if path.is_dir() else [path]:
            if file.stem in by_stem:
                raise InputError(f"{file} and {by_stem[file.stem]} are of the same section; give one of them")
            by_stem[file.stem] = file
    return by_stem


def read_patches(path: Path, width: int) -> Patches:
    """Read one file; raises InputError, naming what is wrong."""
    try:
        with open_hdf5(path, "features by TRIDENT") as file:
            missing = [
                name for name in ("features", "coords") if not isinstance(file.get(name), h5py.Dataset)
            ]
            if missing:
                raise InputError(f"{path} has no dataset {missing[0]!r}; give the .h5 that TRIDENT writes")
            features, coords = file["features"], file["coords"]
            side = float(coords.attrs.get("patch_size_level0", 0))
            if features.ndim == 3 and features.shape[0] == 1:
                values = np.asarray(features[0], np.float32)
            else:
                values = np.asarray(features[()], np.float32)
            corners = np.asarray(coords[()], np.float64).reshape(-1, 2)
    except SectionError as error:
        raise InputError(str(error)) from error
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); extract the features again") from error
    if values.ndim != 2 or len(values) != len(corners) or not len(values) or not side > 0:
        raise InputError(
            f"{path} has features {values.shape} for {len(corners)} patches of {side:g} px; extract the "
            "features again"
        )
    if values.shape[1] != width:
        raise InputError(
            f"{path} has {values.shape[1]} features per patch and the encoder gives {width}; name the "
            "encoder they are from with --encoder"
        )
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise InputError(f"{path}: the features of patch {bad[0]} are not finite; extract them again")
    return Patches(path, values, corners + side / 2, side)


def _of_spots(
    section: FitSection, patches: Patches, setup: EncoderSetup, network: FeatureEncoder, samples: int
) -> TileFeatures:
    """Features of a section's spots, once a few patches prove to be of this encoder."""
    tile = setup.tile
    scale = 1.0 if tile.mpp is None or section.mpp is None else tile.mpp / section.mpp
    expected = patches.side * setup.recipe.tile_px / setup.recipe.resize_px
    side = tile.size_px * scale
    if abs(side - expected) > SIZE_TOLERANCE * expected:
        advice = (
            "extract patches of that size"
            if section.mpp is None
            else f"give --tile-mpp {expected * section.mpp / tile.size_px:.4g}"
        )
        raise InputError(
            f"{patches.path} has patches of {patches.side:g} level-0 px, and the encoder's tiles are "
            f"{side:.0f} px there; {advice}"
        )
    distance, nearest = cKDTree(patches.centers).query(section.xy_px, p=np.inf)
    failed = {
        int(row): f"no patch of {patches.path.name} covers its center"
        for row in np.flatnonzero(distance > patches.side / 2)
    }
    nearest = np.asarray(nearest)
    used = np.unique(nearest[distance <= patches.side / 2])
    if not len(used):
        raise InputError(
            f"{patches.path} has no patch that covers a spot of section {section.name}; give the features of "
            f"{section.image.name}"
        )
    with open_slide(section.image) as slide:
        shape = TileShape(tile.size_px, tile.mpp, tile.pad)
        there = Tiles(slide, patches.centers[used], shape, batch_size=1, workers=1, slide_mpp=section.mpp)
        read, tiles = sample_tiles(there, np.arange(len(used)), CHECKED_PATCHES)
        if not len(read):
            raise SlideError(
                f"{section.image.name} cannot be read under the patches of {patches.path} that are checked; "
                f"give an undamaged slide with --image {section.name}=SLIDE"
            )
        _check_encoder(patches, used[read], tiles, setup, network)
        own = Tiles(slide, section.xy_px, shape, batch_size=1, workers=1, slide_mpp=section.mpp)
        covered = np.array([row for row in range(len(section.spot)) if row not in failed], np.int64)
        _, sample = sample_tiles(own, covered, samples)
    return TileFeatures(patches.values[nearest], failed, sample)


def _check_encoder(
    patches: Patches,
    chosen: NDArray[np.int64],
    tiles: NDArray[np.uint8],
    setup: EncoderSetup,
    network: FeatureEncoder,
) -> None:
    with torch.inference_mode():
        actual = network.encode_tiles(preprocess(tiles, setup.preprocessing)).numpy().astype(np.float64)
    stored = patches.values[chosen].astype(np.float64)
    lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(stored, axis=1)
    cosine = (actual * stored).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    if cosine.min() < LEAST_COSINE:
        raise InputError(
            f"{patches.path} does not hold the features of {setup.recipe.title}: those of patch "
            f"{chosen[int(np.argmin(cosine))]} have a cosine of {cosine.min():.3f} with its own; check "
            "--encoder, --weights, --tile-mpp and the image"
        )
