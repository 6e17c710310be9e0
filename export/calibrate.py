"""From predictions of held-out sections to a Calibration: pure arithmetic, whatever made the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.kernels.nearest import NearestSearch
from mclst.runtime.trust.calibration import PERCENTILES, Calibration, gallery_rows
from mclst.sections.accuracy import pearson_per_gene

LEVELS = (0.8, 0.9)
MOST_COMPONENTS = 128
MOST_BINS, SPOTS_PER_BIN = 5, 200
ERROR_KNOTS = 12
LEAST_RANK = 0.2
"""Least rank correlation of expected and true error of held-out spots: ridge, kNN and blend reach 0.4 to 0.7
on her2st, pca-ridge 0.0."""
LOWER_TAIL = 1.2815515655446004
"""Standard normal quantile of 0.9."""
LARGEST_R = 0.9993
"""A gene that is predicted exactly must not decide the spread of all: its Fisher z counts as 4."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """One group of sections, predicted by a model that never saw it.

    group: its name. prediction, truth: float [n, G], in the map's units. embedding: float [n, D], of the
    final encoder. sections: how many it holds.
    """

    group: str
    prediction: NDArray[np.floating[Any]]
    truth: NDArray[np.floating[Any]]
    embedding: NDArray[np.floating[Any]]
    sections: int = 1


def calibrate(
    groups: Sequence[HeldOut],
    *,
    kind: str = "section",
    stain: NDArray[np.floating[Any]] | None = None,
    levels: Sequence[float] = LEVELS,
) -> Calibration:
    """Calibrate a model by groups of sections that were each predicted from the others.

    Parameters
    ----------
    groups : sequence of HeldOut
        K of them, at least two, with the same genes and dimensions.
    kind : str
        What was left out together, for people.
    stain : float [N, 11], optional
        `stain_values` of the sections' slides.
    levels : sequence of float
        Coverages of the intervals.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If there are fewer than two groups, or one has fewer than three spots.

    Notes
    -----
    Distances are Euclidean after a principal component analysis whose components are divided by the square
    root of their standard deviation: directions that vary little count for more, as another stain or organ
    shows there. Held-out distances use the components of the other groups alone.

    Intervals are split conformal (Vovk et al. 2005) with signed residuals: from the lower to the upper
    quantile of truth - prediction per gene and bin of distance, each with its finite-sample correction. Every
    group has the same weight, so that the pooled distribution stands for a new group (pooling of empirical
    distributions, Dunn, Wasserman and Ramdas 2022). `coverage` is what each group got from the others.

    Genes: Fisher z per group, z_gk = m_g + e_gk, with m_g ~ N(mu, A) over the genes and e_gk ~ N(0, s²)
    between groups; moments give A and s² (empirical Bayes, Efron and Morris 1975). `expected_r` is the
    posterior mean of m_g, and `low_r` the 10th percentile of a new group's z, both as r.

    Spots: the error at a mean prediction, by which each group's spots are ranked from the other groups. Where
    the mean rank correlation with their true error is below 0.2, `spot_error` is the same for all.
    """
    if len(groups) < 2 or min(len(group.truth) for group in groups) < 3:
        raise ValueError(f"{len(groups)} groups; a calibration needs two or more of at least 3 spots")
    distance = _held_out_distances(groups)
    weight = [np.full(len(group.truth), 1 / (len(groups) * len(group.truth))) for group in groups]
    residual = [np.asarray(group.truth, np.float64) - group.prediction for group in groups]
    edges, quantiles = _intervals(distance, residual, weight, levels)
    r = np.stack([pearson_per_gene(*_pair(group)) for group in groups])
    expected_r, low_r = expected_correlation(r)
    error_at, spot_error = _spot_errors(groups, residual, weight)
    projection = _whitening(np.concatenate([group.embedding for group in groups]))
    embedding = np.concatenate([group.embedding for group in groups])
    rows = gallery_rows(len(embedding))
    arrays = {
        "projection": projection,
        "gallery": embedding[rows] @ projection,
        "distance": _weighted_quantiles(
            np.concatenate(distance), np.concatenate(weight), np.linspace(0, 1, PERCENTILES)
        ),
        "edges": edges,
        "levels": np.asarray(levels),
        "residual": quantiles,
        "r": r,
        "expected_r": expected_r,
        "low_r": low_r,
        "error": np.sqrt(np.mean([np.square(values).mean(axis=0) for values in residual], axis=0)),
        "error_at": error_at,
        "spot_error": spot_error,
        "coverage": _nested_coverage(groups, distance, residual, levels),
        "stain": np.empty((0, 11)) if stain is None else np.asarray(stain),
    }
    return Calibration(
        kind=kind,
        group=tuple(group.group for group in groups),
        sections=sum(group.sections for group in groups),
        spots=len(embedding),
        **{name: np.asarray(values, np.float32) for name, values in arrays.items()},
    )


def _pair(group: HeldOut) -> tuple[Array, Array]:
    return np.asarray(group.prediction, np.float64), np.asarray(group.truth, np.float64)


def _whitening(embedding: NDArray[np.floating[Any]]) -> Array:
    """Projection [D, Q]: principal components over the square root of their standard deviation."""
    centered = np.asarray(embedding, np.float64) - embedding.mean(axis=0, dtype=np.float64)
    variance, components = np.linalg.eigh(centered.T @ centered / len(centered))
    variance, components = variance[::-1], components[:, ::-1]
    # Fewer components than half the spots: those beyond are noise of this very sample.
    count = max(1, min(MOST_COMPONENTS, len(centered) // 2, int((variance > 1e-9 * variance[0]).sum())))
    return np.asarray(components[:, :count] / np.maximum(variance[:count], 1e-30) ** 0.25)


def _held_out_distances(groups: Sequence[HeldOut]) -> list[Array]:
    distances = []
    for number, group in enumerate(groups):
        others = np.concatenate([other.embedding for i, other in enumerate(groups) if i != number])
        projection = _whitening(others)
        rows = gallery_rows(len(others))
        search = NearestSearch(others[rows] @ projection)
        distances.append(search.distances(group.embedding @ projection).astype(np.float64))
    return distances


def _intervals(
    distance: Sequence[Array], residual: Sequence[Array], weight: Sequence[Array], levels: Sequence[float]
) -> tuple[Array, Array]:
    """Edges [B - 1] of the bins, and residual quantiles [L, B, 2, G]."""
    far, errors, share = np.concatenate(distance), np.concatenate(residual), np.concatenate(weight)
    bins = int(np.clip(len(far) // SPOTS_PER_BIN, 1, MOST_BINS))
    edges = np.unique(_weighted_quantiles(far, share, np.arange(1, bins) / bins))
    of_spot = np.searchsorted(edges, far)
    quantiles = np.empty((len(levels), len(edges) + 1, 2, errors.shape[1]))
    for number in range(len(edges) + 1):
        inside = of_spot == number
        quantiles[:, number] = _conformal(errors[inside], share[inside], levels)
    return edges, quantiles


def _conformal(errors: Array, weight: Array, levels: Sequence[float]) -> Array:
    """Lower and upper quantiles [L, 2, G] of errors [n, G], of which a new one makes n + 1."""
    order = np.argsort(errors, axis=0, kind="stable")
    ordered = np.take_along_axis(errors, order, axis=0)
    below = np.cumsum(weight[order], axis=0) * (len(errors) / (len(errors) + 1) / weight.sum())
    above = np.cumsum(weight[order][::-1], axis=0)[::-1] * (len(errors) / (len(errors) + 1) / weight.sum())
    last, genes = len(errors) - 1, np.arange(errors.shape[1])
    result = np.empty((len(levels), 2, errors.shape[1]))
    for number, level in enumerate(levels):
        tail = 1 - (1 - level) / 2 - 1e-12
        # Beyond the last observation nothing is known; the largest error seen is the best there is.
        result[number, 1] = ordered[np.minimum((below < tail).sum(axis=0), last), genes]
        result[number, 0] = ordered[np.maximum(last - (above < tail).sum(axis=0), 0), genes]
    return result


def expected_correlation(r: NDArray[np.floating[Any]]) -> tuple[Array, Array]:
    """Return expected_r and low_r [G] from r [K, G] by empirical Bayes; see `calibrate`."""
    z = np.arctanh(np.clip(np.asarray(r, np.float64), -LARGEST_R, LARGEST_R))
    count = (~np.isnan(z)).sum(axis=0)
    several, known = count > 1, count > 0
    mean = np.full(z.shape[1], np.nan)
    mean[known] = np.nanmean(z[:, known], axis=0)
    between = float(np.nanmean(np.nanvar(z[:, several], axis=0, ddof=1))) if several.any() else 0.0
    center = float(mean[known].mean()) if known.any() else 0.0
    noise = between / np.maximum(count, 1)
    spread = max(float(mean[known].var() - noise[known].mean()), 0.0) if known.any() else 0.0
    total = spread + noise
    kept = np.divide(spread, total, out=np.ones_like(total), where=total > 0)
    posterior = center + kept * (mean - center)
    uncertain = np.sqrt(kept * noise + between)
    return np.tanh(posterior), np.tanh(posterior - LOWER_TAIL * uncertain)


def _spot_errors(
    groups: Sequence[HeldOut], residual: Sequence[Array], weight: Sequence[Array]
) -> tuple[Array, Array]:
    """Knots [T] of the mean prediction, and the error of the spots around each; one if it does not tell."""
    mean = [np.asarray(group.prediction, np.float64).mean(axis=1) for group in groups]
    squared = [np.square(values).mean(axis=1) for values in residual]

    def knots(of: Sequence[int], most: int = ERROR_KNOTS) -> tuple[Array, Array]:
        at, error, share = (np.concatenate([values[i] for i in of]) for values in (mean, squared, weight))
        parts = np.array_split(np.argsort(at, kind="stable"), min(most, max(1, len(at) // 20)))
        means = [[np.average(values[part], weights=share[part]) for part in parts] for values in (at, error)]
        return np.array(means[0]), np.sqrt(means[1])

    every = range(len(groups))
    ranks = [
        _rank_correlation(np.interp(mean[i], *knots([j for j in every if j != i])), squared[i]) for i in every
    ]
    return knots(every, ERROR_KNOTS if np.mean(ranks) >= LEAST_RANK else 1)


def _rank_correlation(one: Array, other: Array) -> float:
    """Spearman's, 0 where either is constant."""
    ranks = []
    for values in (one, other):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - count / 2)[place])
    if min(np.ptp(rank) for rank in ranks) == 0:
        return 0.0
    one, other = ((rank - rank.mean()) / rank.std() for rank in ranks)
    return float((one * other).mean())


def _nested_coverage(
    groups: Sequence[HeldOut], distance: Sequence[Array], residual: Sequence[Array], levels: Sequence[float]
) -> Array:
    """Share of each group's residuals inside the quantiles of all other groups [L, K]; NaN of two groups."""
    coverage = np.full((len(levels), len(groups)), np.nan)
    for number in range(len(groups) if len(groups) > 2 else 0):
        others = [i for i in range(len(groups)) if i != number]
        weight = [np.full(len(residual[i]), 1 / (len(others) * len(residual[i]))) for i in others]
        edges, quantiles = _intervals(
            [distance[i] for i in others], [residual[i] for i in others], weight, levels
        )
        of_spot = np.searchsorted(edges, distance[number])
        low, high = quantiles[:, of_spot, 0], quantiles[:, of_spot, 1]
        coverage[:, number] = ((residual[number] >= low) & (residual[number] <= high)).mean(axis=(1, 2))
    return coverage


def _weighted_quantiles(values: Array, weight: Array, at: Array) -> Array:
    order = np.argsort(values, kind="stable")
    position = (np.cumsum(weight[order]) - weight[order] / 2) / weight.sum()
    return np.asarray(np.interp(at, position, values[order]))
