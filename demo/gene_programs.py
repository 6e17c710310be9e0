"""Synthetic genes and the programs planted in them: expression of each tissue domain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mclst.demo.domains import CELL_PX, DOMAINS, Layout

PROGRAMS = {"TUMOR": 16, "GRADE": 10, "STROMA": 16, "ADIPOCYTE": 10, "LYMPHOID": 14, "HOUSE": 14}
"""Number of genes per program; TUMOR1 is the first gene of the tumor program. All genes are fictitious.

GRADE genes rise from low- to high-grade tumor. HOUSE genes are constant everywhere: they are the control,
with an expected correlation of 0.
"""

GENES: tuple[str, ...] = tuple(f"{name}{i + 1}" for name, count in PROGRAMS.items() for i in range(count))
PLANTED: tuple[str, ...] = tuple(gene for gene in GENES if not gene.startswith("HOUSE"))

RICHNESS = {"tumor": 1.35, "stroma": 0.75, "adipose": 0.35, "immune": 1.25}
"""Transcripts of a spot inside one domain, relative to an average spot."""

HOME = {"TUMOR": "tumor", "STROMA": "stroma", "ADIPOCYTE": "adipose", "LYMPHOID": "immune"}
DISPERSION = 0.12
"""Dispersion of the negative binomial: variance = mean + DISPERSION · mean²."""


def expression_profiles() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expression of each domain and the effect of grade, the same for all sections.

    Returns (level [4, G], relative, rows as DOMAINS; slope [G], natural log per unit of grade, in tumor
    only).
    """
    rng = np.random.default_rng(20240)
    level = np.empty((len(DOMAINS), len(GENES)))
    slope = np.zeros(len(GENES))
    for g, gene in enumerate(GENES):
        program = gene.rstrip("0123456789")
        base = np.exp(rng.normal(0, 0.8))
        level[:, g] = base
        if program in HOME:
            level[DOMAINS.index(HOME[program]), g] = base * np.exp(rng.uniform(1.3, 2.6))
        elif program == "GRADE":
            level[DOMAINS.index("tumor"), g] = base * np.exp(rng.uniform(-0.6, 0.0))
            slope[g] = rng.uniform(2.2, 3.2)
    return level, slope


def expected_counts(layout: Layout, xy_px: NDArray[np.float64], spot_um: float) -> NDArray[np.float64]:
    """Expected transcripts per spot and gene before depth: float64 [n, G], in units of an average spot.

    A spot at xy_px [n, 2] with diameter `spot_um` mixes the domains under it, weighted by RICHNESS. HOUSE
    genes are independent of the domains.
    """
    sigma = spot_um / 4 / layout.mpp / CELL_PX  # a disc's second moment: r/2 = d/4 along each axis
    mixture = np.stack([layout.at(gaussian_filter(w * layout.tissue, sigma), xy_px) for w in layout.weight])
    mixture = mixture / np.maximum(mixture.sum(axis=0), 1e-6) * np.array(list(RICHNESS.values()))[:, None]
    grade = layout.at(gaussian_filter(layout.grade, sigma), xy_px).astype(np.float64)
    level, slope = expression_profiles()
    level = level / level.sum(axis=1, keepdims=True)
    tumor = DOMAINS.index("tumor")
    mean = np.einsum("dn,dg->ng", mixture, level)
    mean += mixture[tumor][:, None] * level[tumor] * (np.exp(np.outer(grade, slope)) - 1)
    house = np.array([gene not in PLANTED for gene in GENES])
    total = mean[:, ~house].sum(axis=1, keepdims=True)
    mean[:, house] = level[:, house].mean(axis=0) / level[:, house].mean(axis=0).sum() * 0.15 * total
    return np.asarray(mean)


def sample_counts(rng: np.random.Generator, mean: NDArray[np.float64], depth: float) -> NDArray[np.int64]:
    """Sample counts int64 [n, G]: negative binomial around `mean` · `depth`, log-normal depth per spot."""
    spot_depth = depth * rng.lognormal(-0.5 * 0.35**2, 0.35, (len(mean), 1))
    rate = rng.gamma(1 / DISPERSION, DISPERSION, mean.shape) * mean * spot_depth
    return rng.poisson(rate).astype(np.int64)
