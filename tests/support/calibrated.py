"""Held-out predictions with known noise, and a bundle that is calibrated by them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mclst.export.calibrate import HeldOut, calibrate
from mclst.runtime.bundle.bundle import open_bundle
from mclst.runtime.bundle.calibration import calibration_bytes
from mclst.runtime.bundle.manifest import CALIBRATION
from mclst.runtime.trust.calibration import Calibration


def held_out(
    seed: int = 0,
    *,
    groups: int = 5,
    spots: int = 400,
    genes: int = 30,
    dim: int = 8,
    noise: NDArray[np.float64] | float = 0.5,
) -> list[HeldOut]:
    """Groups from one distribution: truth = signal + noise of a known standard deviation per gene."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(dim, genes))
    result = []
    for number in range(groups):
        embedding = rng.normal(size=(spots, dim))
        signal = embedding @ loadings * 0.3 + 3
        truth = signal + rng.normal(size=signal.shape) * noise
        result.append(HeldOut(f"S{number}", signal, truth, embedding))
    return result


def calibrate_bundle(source: Path, folder: Path, calibration: Calibration | None = None) -> Calibration:
    """Copy a bundle to `folder` and calibrate it; the calibration's own spots are the bank's embeddings."""
    shutil.copytree(source, folder)
    if calibration is None:
        bundle = open_bundle(folder)
        rng = np.random.default_rng(1)
        rows = bundle.bank.embedding
        expression = bundle.bank.expression
        parts = np.array_split(np.arange(len(rows)), 4)
        groups = [
            HeldOut(
                f"S{number}",
                expression[part] + rng.normal(0, 0.2, expression[part].shape),
                expression[part],
                rows[part],
            )
            for number, part in enumerate(parts)
        ]
        calibration = calibrate(groups)
    write_calibration(folder, calibration_bytes(calibration))
    return calibration


def write_calibration(folder: Path, content: bytes, **record: object) -> None:
    """Put a file in the place of a bundle's calibration, with right hashes."""
    (folder / CALIBRATION).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["format"] = "mclst-bundle/2"
    manifest["files"][CALIBRATION] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    if record or not manifest.get("calibration"):
        from mclst.runtime.bundle.calibration import read_calibration

        values = read_calibration(
            folder / CALIBRATION, genes=manifest["genes"], dim=manifest["encoder"]["embedding_dim"]
        )
        manifest["calibration"] = {
            "left_out": values.kind,
            "groups": len(values.group),
            "sections": values.sections,
            "spots": values.spots,
            **record,
        }
    (folder / "manifest.json").write_text(json.dumps(manifest))
