"""Features of a section's tiles, kept between fits."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.definition.user_cache import read_own, store_own

VERSION = 1
"""Of the file and of what is computed; a change starts a new cache."""


@dataclass(frozen=True)
class TileFeatures:
    """Features of a section's tiles.

    values: float32 [n, F], 0 where a tile could not be read. failed: {row: reason}. sample: uint8 [t, S, S,
    3], some of the tiles.
    """

    values: NDArray[np.float32]
    failed: Mapping[int, str]
    sample: NDArray[np.uint8]


def cache_path(folder: Path, key: Mapping[str, Any]) -> Path:
    """Return the file of the features that `key` decides."""
    text = json.dumps({"version": VERSION, **key}, sort_keys=True)
    return folder / "features" / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"


def read_features(path: Path, shape: tuple[int, int]) -> TileFeatures | None:
    """Read a file of `write_features`; None if there is none, or it is damaged, of another shape or user."""
    stored = read_own(path)
    if stored is None:
        return None
    try:
        with np.load(BytesIO(stored), allow_pickle=False) as content:
            values, sample = content["values"], content["sample"]
            failed = dict(zip(content["failed"].tolist(), content["reasons"].tolist(), strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if values.shape != shape or values.dtype != np.float32 or sample.dtype != np.uint8:
        return None
    return TileFeatures(values, failed, sample)


def write_features(path: Path, features: TileFeatures) -> str:
    """Keep features; return why that was not possible, else ""."""
    content = BytesIO()
    np.savez(
        content,
        values=features.values,
        sample=features.sample,
        failed=np.array(list(features.failed), np.int64),
        reasons=np.array(list(features.failed.values()), np.str_),
    )
    if store_own(path, content.getvalue()):
        return ""
    return f"the features are not kept for the next fit: {path.parent} cannot be written"
