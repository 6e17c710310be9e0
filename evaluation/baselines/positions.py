"""Baselines that know the measured training sections and a spot's position, and see no image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mclst.evaluation.baselines.measured_section import MeasuredSection

SIDE = 32
"""Cells of the field along each side of the tissue."""
WIDTHS = (0.03, 0.06, 0.12, 0.25, 0.5)
"""Widths of the smoothing to choose from, as shares of the tissue's side."""
LEAST_WEIGHT = 1e-9
"""A cell of the field with less than this many spots' weight gets the mean."""
NEIGHBORS = (1, 5, 20, 50, 200)
"""Numbers of nearest spots to choose from."""
SECTIONS_TO_CHOOSE = 8
GENES_TO_CHOOSE = 200

Values = NDArray[np.float64]


def smooth_field(training: Sequence[MeasuredSection], section: MeasuredSection) -> tuple[Values, str] | None:
    """Average the training sections' expression around a spot's place in the tissue, with Gaussian weights.

    Its width is the one that predicts the training sections best, each left out in turn.

    Parameters
    ----------
    training : sequence of MeasuredSection
    section : MeasuredSection

    Returns
    -------
    (float64 [n, G], str) or None
        Prediction and the chosen width; None without positions on both sides. Spots without a position get
        the mean.
    """
    placed = [s for s in training if s.place is not None]
    if section.place is None or not placed:
        return None
    onto = [_interpolation(s.place) for s in placed if s.place is not None]
    sums = np.stack([np.asarray(w.T @ s.expression, np.float64) for w, s in zip(onto, placed, strict=True)])
    counts = np.stack([np.asarray(w.sum(axis=0), np.float64).ravel() for w in onto])
    whole, whole_counts = sums.sum(axis=0), counts.sum(axis=0)
    errors = np.zeros(len(WIDTHS))
    for i in _spread(len(placed)) if len(placed) > 1 else ():
        own = placed[i]
        assert own.place is not None
        genes = np.argsort(-own.expression.var(axis=0), kind="stable")[:GENES_TO_CHOOSE]
        rest, rest_counts = (whole - sums[i])[:, genes], whole_counts - counts[i]
        for w, width in enumerate(WIDTHS):
            predicted = _average(own.place, rest, rest_counts, width)
            errors[w] += np.square(predicted - own.expression[:, genes]).mean()
    width = WIDTHS[int(np.argmin(errors))] if errors.any() else WIDTHS[2]
    return _average(section.place, whole, whole_counts, width), f"width {width:g} of the tissue"


def nearest_spots(training: Sequence[MeasuredSection], section: MeasuredSection) -> tuple[Values, str] | None:
    """Average the training spots nearest to a spot's place in the tissue; see `smooth_field`."""
    placed = [s for s in training if s.place is not None]
    if section.place is None or not placed:
        return None
    errors = np.zeros(len(NEIGHBORS))
    for i in _spread(len(placed)) if len(placed) > 1 else ():
        own = placed[i]
        assert own.place is not None
        genes = np.argsort(-own.expression.var(axis=0), kind="stable")[:GENES_TO_CHOOSE]
        rest = [s for j, s in enumerate(placed) if j != i]
        for c, count in enumerate(NEIGHBORS):
            predicted = _nearest(rest, own.place, count, genes)
            errors[c] += np.square(predicted - own.expression[:, genes]).mean()
    count = NEIGHBORS[int(np.argmin(errors))] if errors.any() else 1
    return _nearest(placed, section.place, count, None), f"{count} spots"


def training_mean(training: Sequence[MeasuredSection]) -> Values:
    """Mean expression of each gene over all training spots: float64 [G]."""
    spots = sum(len(section) for section in training)
    return np.asarray(sum(s.expression.sum(axis=0, dtype=np.float64) for s in training) / spots)


def _spread(count: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, count - 1, min(count, SECTIONS_TO_CHOOSE)).astype(np.intp))


def _interpolation(place: Values) -> sp.csr_matrix:
    """Bilinear weights of the field's cells at each place, sparse [n, SIDE²]; rows of NaN are empty."""
    known = np.flatnonzero(np.isfinite(place).all(axis=1))
    scaled = np.clip(place[known], 0, 1) * (SIDE - 1)
    low = np.minimum(scaled.astype(np.intp), SIDE - 2)
    part = scaled - low
    corners = [(dx, dy) for dx in (0, 1) for dy in (0, 1)]
    columns = [(low[:, 0] + dx) * SIDE + low[:, 1] + dy for dx, dy in corners]
    weights = [np.abs(1 - dx - part[:, 0]) * np.abs(1 - dy - part[:, 1]) for dx, dy in corners]
    entries = (np.concatenate(weights), (np.tile(known, 4), np.concatenate(columns)))
    return sp.csr_matrix(entries, shape=(len(place), SIDE * SIDE))


def _average(place: Values, sums: Values, counts: Values, width: float) -> Values:
    steps = np.arange(SIDE) / (SIDE - 1)
    kernel = np.exp(-np.square(steps[:, None] - steps) / (2 * width**2))
    weights = np.kron(kernel, kernel)
    below = np.asarray(weights @ counts)
    mean = sums.sum(axis=0) / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        field = np.where(below[:, None] > LEAST_WEIGHT, (weights @ sums) / below[:, None], mean)
    onto = _interpolation(place)
    placed = np.asarray(np.isfinite(place).all(axis=1))
    return np.where(placed[:, None], onto @ field, mean)


def _nearest(
    training: Sequence[MeasuredSection], place: Values, count: int, genes: NDArray[np.intp] | None
) -> Values:
    columns = slice(None) if genes is None else genes
    known = [np.isfinite(s.place).all(axis=1) for s in training if s.place is not None]
    places = np.concatenate([s.place[k] for s, k in zip(training, known, strict=True) if s.place is not None])
    expression = np.concatenate([s.expression[k][:, columns] for s, k in zip(training, known, strict=True)])
    result = np.tile(expression.mean(axis=0, dtype=np.float64), (len(place), 1))
    at = np.flatnonzero(np.isfinite(place).all(axis=1))
    count = min(count, len(places))
    nearest = np.asarray(cKDTree(places).query(place[at], k=count)[1]).reshape(len(at), count)
    rows = np.repeat(np.arange(len(at)), count)
    weights = sp.csr_matrix((np.full(len(rows), 1 / count), (rows, nearest.ravel())), (len(at), len(places)))
    result[at] = weights @ expression
    return result
