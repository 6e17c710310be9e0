"""Made-up genes and the programmes planted in them: what each kind of tissue expresses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mclst.demo.domains import CELL_PX, DOMAINS, Layout

PROGRAMMES = {"TUMOUR": 16, "GRADE": 10, "STROMA": 16, "ADIPOCYTE": 10, "LYMPHOID": 14, "HOUSE": 14}
"""Genes per programme. No such genes exist: TUMOUR1 is the first gene of the planted tumour programme.

GRADE genes rise from low- to high-grade tumour. HOUSE genes stand at one level everywhere: what a model says of
them is the control, and its correlation should be about 0.
"""

GENES: tuple[str, ...] = tuple(f"{name}{i + 1}" for name, count in PROGRAMMES.items() for i in range(count))
PLANTED: tuple[str, ...] = tuple(gene for gene in GENES if not gene.startswith("HOUSE"))

RICHNESS = {"tumour": 1.35, "stroma": 0.75, "adipose": 0.35, "immune": 1.25}
"""Transcripts of a spot wholly in one domain, relative to an average spot."""

HOME = {"TUMOUR": "tumour", "STROMA": "stroma", "ADIPOCYTE": "adipose", "LYMPHOID": "immune"}
DISPERSION = 0.12
"""Of the negative binomial: variance = mean + DISPERSION · mean²."""


def profiles() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expression of each domain, and the effect of grade; the same for every section ever made.

    Returns (level [4, G], relative and unscaled, rows as DOMAINS; slope [G], natural log per unit of grade, felt
    in tumour alone).
    """
    rng = np.random.default_rng(20240)
    level = np.empty((len(DOMAINS), len(GENES)))
    slope = np.zeros(len(GENES))
    for g, gene in enumerate(GENES):
        programme = gene.rstrip("0123456789")
        base = np.exp(rng.normal(0, 0.8))
        level[:, g] = base
        if programme in HOME:
            level[DOMAINS.index(HOME[programme]), g] = base * np.exp(rng.uniform(1.3, 2.6))
        elif programme == "GRADE":
            level[DOMAINS.index("tumour"), g] = base * np.exp(rng.uniform(-0.6, 0.0))
            slope[g] = rng.uniform(2.2, 3.2)
    return level, slope


def expected(layout: Layout, xy_px: NDArray[np.float64], spot_um: float) -> NDArray[np.float64]:
    """Transcripts expected per spot and gene before depth: float64 [n, G], in units of an average spot.

    A spot of diameter `spot_um` µm mixes the domains under it, each as rich as RICHNESS says; xy_px [n, 2].
    HOUSE genes ignore the domains and stand at their own level.
    """
    sigma = spot_um / 4 / layout.mpp / CELL_PX  # a disc's second moment: r/2 = d/4 along each axis
    under = np.stack([layout.at(gaussian_filter(w * layout.tissue, sigma), xy_px) for w in layout.weight])
    under = under / np.maximum(under.sum(axis=0), 1e-6) * np.array(list(RICHNESS.values()))[:, None]
    grade = layout.at(gaussian_filter(layout.grade, sigma), xy_px).astype(np.float64)
    level, slope = profiles()
    level = level / level.sum(axis=1, keepdims=True)
    tumour = DOMAINS.index("tumour")
    mean = np.einsum("dn,dg->ng", under, level)
    mean += under[tumour][:, None] * level[tumour] * (np.exp(np.outer(grade, slope)) - 1)
    house = np.array([gene not in PLANTED for gene in GENES])
    total = mean[:, ~house].sum(axis=1, keepdims=True)
    mean[:, house] = level[:, house].mean(axis=0) / level[:, house].mean(axis=0).sum() * 0.15 * total
    return np.asarray(mean)


def measure(rng: np.random.Generator, mean: NDArray[np.float64], depth: float) -> NDArray[np.int64]:
    """Counts int64 [n, G]: negative binomial about `mean` times `depth` transcripts, with a log-normal depth per spot."""
    caught = depth * rng.lognormal(-0.5 * 0.35**2, 0.35, (len(mean), 1))
    rate = rng.gamma(1 / DISPERSION, DISPERSION, mean.shape) * mean * caught
    return rng.poisson(rate).astype(np.int64)
