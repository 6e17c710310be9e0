"""Made-up dense maps: one as retrieval makes them, one whose noise is each spot's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever
from mclst.runtime.expression_map.reader import Map

PITCH_PX = 100.0
PROGRAMMES = 16
SMOOTH, TEXTURE = 8.0, 1.0
"""Standard deviations of the Gaussians that the fields of the programmes are smoothed with, in places."""
ROUGH = 0.4
"""Of the texture's field, where the smooth one's is 1."""
WIDTH, LOADING = 0.8, 0.9
"""A programme's width in the embedding, over the one before it, the first 1; the first one's loadings, each later one's half."""
BANK, COUNTS = 8000, 0.5
"""Reference spots; a gene's mean count in one, a tenth of it everywhere, the rest exponential over the genes."""
NOISE = 0.05
"""Of a gene's range, each spot's own."""


def retrieved(spots: int, genes: int, seed: int = 0) -> Map:
    """Means of the nearest of `BANK` made-up reference spots, as predictions are; neighbours share them, and so their noise.

    A place's embedding is its programmes, smooth fields and a texture; a reference spot's is drawn from their distribution,
    its counts are Poisson about exp(embedding · loadings), log1p, each gene 0 … 1. A place's expression is the inverse-square
    mean of the up to 200 nearest. The constants are such that a
    page takes as many bits a value for 4,290 places of it (2.46, 1.55 and 0.81 in 62, 30 and 14 steps) as for the 4,290 every 25 µm of the HER2+ section
    C4 by its published checkpoint (2.50, 1.55, 0.80).
    """
    rng = np.random.default_rng(seed)
    width = WIDTH ** np.arange(PROGRAMMES)
    count = min(BANK, 20 * spots)
    reference = rng.normal(size=(count, PROGRAMMES)) * np.hypot(1, ROUGH) * width
    loadings = rng.normal(size=(PROGRAMMES, genes)) * LOADING / 2.0 ** np.arange(PROGRAMMES)[:, None]
    rate = COUNTS * (0.1 + 0.9 * rng.exponential(size=genes)) * np.exp(reference @ loadings)
    counts = np.log1p(rng.poisson(rate))
    bank = SimpleNamespace(
        embedding=reference.astype(np.float32),
        expression=(counts / np.maximum(counts.max(axis=0), 1)).astype(np.float32),
    )
    places = (_fields(spots, SMOOTH, rng) + ROUGH * _fields(spots, TEXTURE, rng)) * width
    spec = RetrievalSpec(k=min(200, count), rank="l2", distance="l2", weighting="inverse-square")
    expression = Retriever(bank, spec).aggregate(places.astype(np.float32)).expression
    return _map("as retrieved", np.asarray(expression), rng)


def noisy(spots: int, genes: int, seed: int = 0) -> Map:
    """Each gene a mixture of smooth programmes with noise of 5 % of its range, each spot's own: the worst to be told in few bytes."""
    rng = np.random.default_rng(seed)
    expression = _fields(spots, SMOOTH, rng) @ rng.gamma(0.5, size=(PROGRAMMES, genes))
    expression += rng.normal(size=expression.shape) * NOISE * np.ptp(expression, axis=0)
    return _map("noise of its own", expression.astype(np.float32), rng)


MADE: dict[str, Callable[[int, int], Map]] = {"as retrieved": retrieved, "noise of its own": noisy}


def _fields(spots: int, smoothness: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth field of variance 1 for each programme over a square grid, float64 [spots, PROGRAMMES]."""
    side = math.ceil(math.sqrt(spots))
    fields = np.stack(
        [gaussian_filter(rng.normal(size=(side, side)), smoothness) for _ in range(PROGRAMMES)], -1
    )
    return np.asarray(fields / fields.std(axis=(0, 1))).reshape(-1, PROGRAMMES)[:spots]


def _map(what: str, expression: NDArray[np.float32], rng: np.random.Generator) -> Map:
    spots, genes = expression.shape
    side = math.ceil(math.sqrt(spots))
    row, column = np.divmod(np.arange(spots), side)
    size = int(side * PITCH_PX * 0.1)
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
