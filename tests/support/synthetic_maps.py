"""Made-up expression maps, as mclst-infer writes them, to draw and to convert."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

SCALE = 0.1
DIAMETER = 60.0
HOSTILE = "</script><img src=x onerror=alert(1)>&<b>"


@dataclass(frozen=True)
class SyntheticMap:
    """A map on disk and what it was made of."""

    path: Path
    expression: NDArray[np.float32]
    xy_px: NDArray[np.float64]
    genes: list[str]
    spots: list[str]
    nearest: NDArray[np.float32]

    def value(self, gene: str) -> NDArray[np.float32]:
        """Of one gene at every spot."""
        return self.expression[:, self.genes.index(gene)]


def synthetic_map(
    path: Path,
    *,
    side: int = 9,
    genes: int = 12,
    mpp: float | None = 0.5,
    grid: bool = False,
    title: str = "made",
    calibrated: bool = False,
) -> SyntheticMap:
    """Spots in `side` rows and columns over pale tissue; gene g is a slope, noisier with g. One is unread.

    calibrated: as a run with a calibrated bundle and --intervals writes it; the first row is outside, genes
    of even number are reliable, and the expected error is the nearest distance / 10.
    """
    rng = np.random.default_rng(11)
    pitch = DIAMETER if grid else 2 * DIAMETER
    x, y = np.meshgrid(np.arange(side) * pitch + 200.0, np.arange(side) * pitch + 150.0)
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    n = len(xy)
    if not grid:  # as spots printed by hand lie
        xy += np.random.default_rng(12).integers(-25, 26, xy.shape)
    slope = (xy[:, :1] + 0.6 * xy[:, 1:]) / 1000
    expression = (slope + rng.normal(size=(n, genes)) * np.arange(genes) * 0.12 + 0.3).astype(np.float32)
    expression[n // 2] = np.nan
    nearest = rng.uniform(1, 9, n).astype(np.float32)
    spots = [f"{i % side}x{i // side}" for i in range(n)]
    image = np.full(
        (int((side + 2) * pitch * SCALE) + 40, int((side + 2) * pitch * SCALE) + 60, 3), 240, np.uint8
    )
    image[::7] -= 20
    table = pd.DataFrame({"nearest_distance": nearest, "effective_k": rng.uniform(5, 90, n)}, index=spots)
    settings: dict[str, object] = {"k": 10}
    if grid:
        settings["grid_um"] = DIAMETER * (mpp or 1.0)
    provenance: dict[str, object] = {
        "bundle": {"system": "mclstexp", "normalization_expression": "gene-wise"},
        "slide": {"name": f"{title}.svs"} | ({} if mpp is None else {"mpp": mpp}),
        "settings": settings,
        "versions": {"mclst": "0"},
    }
    library = title.replace("/", "_")
    slide = {
        "images": {"hires": image},
        "scalefactors": {"tissue_hires_scalef": SCALE, "spot_diameter_fullres": DIAMETER},
    }
    names = [f"GENE{g}" for g in range(genes)]
    data = anndata.AnnData(
        expression, obs=table, obsm={"spatial": xy}, uns={"spatial": {library: slide}, "mclst": provenance}
    )
    data.var_names = names
    if calibrated:
        outside = np.arange(n) < side
        data.obs["outside"], data.obs["expected_error"] = outside, np.where(outside, np.nan, nearest / 10)
        data.obs["distance_percentile"] = np.where(outside, 1.0, 0.5).astype(np.float32)
        data.var["expected_r"] = np.linspace(0.6, 0.0, genes).astype(np.float32)
        data.var["reliable"] = np.arange(genes) % 2 == 0
        width = np.where(outside, np.nan, 0.5)[:, None]
        data.layers["low"], data.layers["high"] = expression - width, expression + width
        verdict = f"{side / n:.0%} of the spots are unlike the 551 spots of 3 sections it was calibrated on"
        data.uns["mclst"]["trust"] = {"verdict": verdict, "outside_share": side / n, "calibrated": True}
    data.write_h5ad(path)
    return SyntheticMap(path, expression, xy, names, spots, nearest)


def write_counts_map(path: Path) -> None:
    """A map that is a section and a spot table too: no value is missing or negative."""
    synthetic_map(path)
    with h5py.File(path, "r+") as file:
        file["X"][...] = np.nan_to_num(np.abs(file["X"][...]))
