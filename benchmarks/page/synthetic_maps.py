"""Synthetic dense maps: one that retrieval predicts, one with independent noise at each spot."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mclst.kernels.definition.spec import RetrievalSpec
from mclst.kernels.retriever import Retriever
from mclst.runtime.expression_map.reader import Map
from mclst.sections.columns import Columns

PITCH_PX = 100.0
PROGRAMS = 16
SMOOTH, TEXTURE = 8.0, 1.0
"""Standard deviations, in spots, of the Gaussians that smooth the fields of the programs."""
TEXTURE_SCALE = 0.4
"""Amplitude of the texture relative to the smooth fields."""
PROGRAM_DECAY, LOADING = 0.8, 0.9
"""Ratio of successive programs' widths in the embedding; loadings of the first program, then halved."""
BANK_SPOTS, MEAN_COUNT = 8000, 0.5
NOISE = 0.05
"""Standard deviation of the noise as a share of a gene's range."""


def retrieved_map(spots: int, genes: int, seed: int = 0) -> Map:
    """Predict a map by retrieval, so that neighbors share reference spots and their noise.

    The embedding of a spot is its programs: smooth fields plus texture. Reference counts are Poisson with
    mean exp(embedding · loadings), log1p-transformed and scaled to 0 … 1. Expression is the inverse-square
    mean of up to 200 nearest reference spots.
    """
    rng = np.random.default_rng(seed)
    width = PROGRAM_DECAY ** np.arange(PROGRAMS)
    count = min(BANK_SPOTS, 20 * spots)
    reference = rng.normal(size=(count, PROGRAMS)) * np.hypot(1, TEXTURE_SCALE) * width
    loadings = rng.normal(size=(PROGRAMS, genes)) * LOADING / 2.0 ** np.arange(PROGRAMS)[:, None]
    rate = MEAN_COUNT * (0.1 + 0.9 * rng.exponential(size=genes)) * np.exp(reference @ loadings)
    counts = np.log1p(rng.poisson(rate))
    bank = SimpleNamespace(
        embedding=reference.astype(np.float32),
        expression=(counts / np.maximum(counts.max(axis=0), 1)).astype(np.float32),
    )
    queries = (_fields(spots, SMOOTH, rng) + TEXTURE_SCALE * _fields(spots, TEXTURE, rng)) * width
    spec = RetrievalSpec(k=min(200, count), rank="l2", distance="l2", weighting="inverse-square")
    expression = Retriever(bank, spec).aggregate(queries.astype(np.float32)).expression
    return _make_map("retrieved", np.asarray(expression), rng)


def noisy_map(spots: int, genes: int, seed: int = 0) -> Map:
    """Mix smooth programs and add independent noise at each spot: the hardest map to compress."""
    rng = np.random.default_rng(seed)
    expression = _fields(spots, SMOOTH, rng) @ rng.gamma(0.5, size=(PROGRAMS, genes))
    expression += rng.normal(size=expression.shape) * NOISE * np.ptp(expression, axis=0)
    return _make_map("noisy", expression.astype(np.float32), rng)


MAPS: dict[str, Callable[[int, int], Map]] = {"retrieved": retrieved_map, "noisy": noisy_map}


def _fields(spots: int, smoothness: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a smooth field of variance 1 for each program over a square grid, float64 [spots, PROGRAMS]."""
    side = math.ceil(math.sqrt(spots))
    fields = np.stack(
        [gaussian_filter(rng.normal(size=(side, side)), smoothness) for _ in range(PROGRAMS)], -1
    )
    return np.asarray(fields / fields.std(axis=(0, 1))).reshape(-1, PROGRAMS)[:spots]


def _make_map(kind: str, expression: NDArray[np.float32], rng: np.random.Generator) -> Map:
    spots, genes = expression.shape
    side = math.ceil(math.sqrt(spots))
    row, column = np.divmod(np.arange(spots), side)
    size = int(side * PITCH_PX * 0.1)
    tissue = np.clip(225 + gaussian_filter(rng.normal(size=(size, size, 3)), (2, 2, 0)) * 60, 0, 255)
    return Map(
        path=Path("synthetic.h5ad"),
        title=f"{spots:,} spots, {genes:,} genes, {kind}",
        genes=tuple(f"GENE{gene}" for gene in range(genes)),
        expression=expression,
        obs=Columns(
            np.array([f"{x}x{y}" for x, y in zip(column, row, strict=True)], dtype=object),
            {"nearest_distance": rng.uniform(1, 9, size=(spots,))},
        ),
        xy_px=np.stack([column + 0.5, row + 0.5], axis=1) * PITCH_PX,
        image=tissue.astype(np.uint8),
        image_scale=0.1,
        spot_diameter_px=PITCH_PX,
        mpp=0.5,
        provenance={"settings": {"grid_um": PITCH_PX * 0.5}},
    )
