"""Made-up dense maps: one as retrieval makes them, one whose noise is each spot's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mclst.kernels import RetrievalSpec, Retriever
from mclst.runtime.map_file import Map

PITCH_PX = 100.0
PROGRAMMES = 12
NOISE = 0.05
"""Of a gene's range, each spot's own."""
BANK, COUNTS = 8000, 3.0
"""Reference spots; a gene's usual count in one."""


def retrieved(spots: int, genes: int, seed: int = 0) -> Map:
    """Means of the nearest of `BANK` made-up reference spots, as predictions are, whose embeddings follow smooth programmes.

    A reference spot is a place somewhere else in the same programmes; its counts are Poisson about exp(programmes · loadings), log1p,
    each gene 0 … 1. A place's embedding is its programmes; its expression the inverse-square mean of the up to 200
    nearest reference spots. So neighbours share reference spots, and with them their noise.
    """
    rng = np.random.default_rng(seed)
    fields, column, row = _programmes(spots, rng)
    count = min(BANK, 20 * spots)
    reference = rng.normal(size=(count, PROGRAMMES)).astype(np.float32)
    rate = np.log(COUNTS) + reference @ (rng.normal(size=(PROGRAMMES, genes)) * 0.35)
    counts = np.log1p(rng.poisson(np.exp(rate)))
    bank = SimpleNamespace(
        embedding=reference, expression=(counts / counts.max(axis=0).clip(1)).astype(np.float32)
    )
    spec = RetrievalSpec(k=min(200, count), rank="l2", distance="l2", weighting="inverse-square")
    expression = Retriever(bank, spec).aggregate(fields.astype(np.float32)).expression
    return _map("as retrieved", np.asarray(expression), column, row, rng)


def noisy(spots: int, genes: int, seed: int = 0) -> Map:
    """Each gene a mixture of smooth programmes with noise of 5 % of its range, each spot's own: hardly to be told in few bytes."""
    rng = np.random.default_rng(seed)
    fields, column, row = _programmes(spots, rng)
    expression = fields @ rng.gamma(0.5, size=(PROGRAMMES, genes))
    expression += rng.normal(size=expression.shape) * NOISE * np.ptp(expression, axis=0)
    return _map("noise of its own", expression.astype(np.float32), column, row, rng)


MADE: dict[str, Callable[[int, int], Map]] = {"as retrieved": retrieved, "noise of its own": noisy}


def _programmes(
    spots: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]:
    """Smooth fields of variance 1 over a square grid, float64 [spots, PROGRAMMES]; column and row of each spot."""
    side = int(np.ceil(np.sqrt(spots)))
    fields = np.stack(
        [gaussian_filter(rng.normal(size=(side, side)), side / 12) for _ in range(PROGRAMMES)], axis=-1
    )
    fields /= fields.std(axis=(0, 1))
    row, column = np.divmod(np.arange(spots), side)
    return fields[row, column], column, row


def _map(
    what: str,
    expression: NDArray[np.float32],
    column: NDArray[np.intp],
    row: NDArray[np.intp],
    rng: np.random.Generator,
) -> Map:
    spots, genes = expression.shape
    size = int((row.max() + 1) * PITCH_PX * 0.1)
    tissue = np.clip(225 + gaussian_filter(rng.normal(size=(size, size, 3)), (2, 2, 0)) * 60, 0, 255)
    return Map(
        path=Path("made-up.h5ad"),
        title=f"{spots:,} spots, {genes:,} genes, {what}",
        genes=tuple(f"GENE{gene}" for gene in range(genes)),
        expression=expression,
        table=pd.DataFrame(
            {"nearest_distance": rng.uniform(1, 9, spots)},
            index=[f"{x}x{y}" for x, y in zip(column, row, strict=True)],
        ),
        xy_px=np.stack([column + 0.5, row + 0.5], axis=1) * PITCH_PX,
        image=tissue.astype(np.uint8),
        image_scale=0.1,
        spot_diameter_px=PITCH_PX,
        mpp=0.5,
        told={"settings": {"grid_um": PITCH_PX * 0.5}},
    )
