"""A map against another prediction of the same spots, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

RESAMPLES = 1000
BLOCKS = 3
"""Spatial blocks along each side of a section: few, as they must be wider than the tissue's structures."""
LEAST_GROUPS = 5
"""Sections or patients from which on they are resampled, instead of blocks within them."""
LEVEL = 0.95
BLOCK_BYTES = 64 << 20
"""Size of the sums over a block of genes."""
SEED = 0

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Compared:
    """One section: truth and the two predictions, float64 [n, G], positions [n, 2], and its group.

    group: sections of one group, such as a patient, are resampled together.
    """

    truth: Values
    map: Values
    other: Values
    xy: Values | None
    group: str


@dataclass(frozen=True)
class Comparison:
    """A map against another prediction over some genes.

    Attributes
    ----------
    r_map, r_other : float
        Mean Pearson r over the genes, and over the sections; NaN where one is constant.
    mse_map, mse_other : float
    r : Interval
        r_map − r_other over the genes where both have an r: above 0, the map is better.
    mse : Interval
        mse_other − mse_map: above 0, the map is better.
    better : float
        Share of those genes where the map's r is higher.
    resampled : str
        "patients", "sections" or "blocks".
    """

    r_map: float
    r_other: float
    mse_map: float
    mse_other: float
    r: Interval
    mse: Interval
    better: float
    resampled: str

    @property
    def decisive(self) -> Interval:
        """The difference that decides: in r, or in MSE where the other is constant and has none."""
        return self.mse if np.isnan(self.r.value) else self.r

    @property
    def outcome(self) -> str:
        """Whether the map is "better", "worse" or "not told apart"."""
        interval = self.decisive
        return "better" if interval.low > 0 else "worse" if interval.high < 0 else "not told apart"


def compare(sections: Sequence[Compared], sets: Mapping[str, NDArray[np.intp]]) -> dict[str, Comparison]:
    """Compare a map with another prediction over each set of genes.

    Parameters
    ----------
    sections : sequence of Compared
        With equal genes.
    sets : mapping of name to columns

    Returns
    -------
    dict of Comparison by the name of the set

    Notes
    -----
    Percentile bootstrap (Efron & Tibshirani 1993), paired: both predictions are scored on the same resample.
    Resampled are patients or sections if there are five or more, as the units that a new slide is one of;
    else blocks of neighboring spots within each section, since single spots are not independent. As the units
    are few, K, bounds are moved away from the value by t(K − 1) / 1.96 · √(K / (K − 1)), t the quantile of
    Student's distribution. Structures as wide as a third of the section still make the interval too narrow.
    """
    unit, groups = _units(sections)
    rng = np.random.default_rng(SEED)
    whole = [_differences(s, np.ones((1, len(s.truth))), sets) for s in sections]
    values = {name: np.stack([own[name] for own in whole]) for name in sets}
    if unit == "blocks":
        resampled, units = [], 0
        for own in sections:
            block = _blocks(own)
            count = int(block.max()) + 1
            resampled.append(_differences(own, _draw(rng, count), sets, block))
            units += count
        draws = {name: _nanmean(np.stack([own[name] for own in resampled])) for name in sets}
    else:
        members = np.array([[group == own.group for own in sections] for group in groups], np.float64)
        drawn = _draw(rng, len(groups)) @ members
        draws, units = {name: _weighted(drawn, values[name][:, 0]) for name in sets}, len(groups)
    return {name: _comparison(_nanmean(values[name])[0], draws[name], unit, units) for name in sets}


def _units(sections: Sequence[Compared]) -> tuple[str, list[str]]:
    groups = list(dict.fromkeys(section.group for section in sections))
    if len(groups) < LEAST_GROUPS:
        return "blocks", groups
    return ("patients" if len(groups) < len(sections) else "sections"), groups


def _blocks(section: Compared) -> NDArray[np.intp]:
    """Block of each spot, 0 … : cells of a grid over the section; runs of spots if it has no positions."""
    n = len(section.truth)
    if section.xy is None or not np.isfinite(section.xy).all():
        return np.arange(n) * min(BLOCKS**2, n) // n
    low, extent = section.xy.min(axis=0), np.ptp(section.xy, axis=0)
    size = max(float(extent.max()) / BLOCKS, 1e-9)
    cell = np.minimum(((section.xy - low) / size).astype(np.intp), BLOCKS - 1)
    return np.asarray(np.unique(cell[:, 0] * BLOCKS + cell[:, 1], return_inverse=True)[1], np.intp)


def _draw(rng: np.random.Generator, units: int) -> Values:
    """How often each unit is drawn in each resample: [RESAMPLES, units]."""
    return rng.multinomial(units, np.full(units, 1 / units), RESAMPLES).astype(np.float64)


def _differences(
    own: Compared,
    weights: Values,
    sets: Mapping[str, NDArray[np.intp]],
    block: NDArray[np.intp] | None = None,
) -> dict[str, Values]:
    """[B, 7] per set: r of map and other, their difference, MSEs and difference, share of better genes."""
    genes = own.truth.shape[1]
    per_gene = np.empty((4, len(weights), genes))
    at_once = max(1, BLOCK_BYTES // (8 * 11 * max(len(own.truth), len(weights))))
    for start in range(0, genes, at_once):
        columns = slice(start, start + at_once)
        per_gene[:, :, columns] = _moments(own, weights, columns, block)
    r_map, r_other, mse_map, mse_other = per_gene
    result = {}
    for name, chosen in sets.items():
        difference = r_map[:, chosen] - r_other[:, chosen]
        defined = ~np.isnan(difference)
        better = np.where(
            defined.any(axis=1), (difference > 0).sum(axis=1) / np.maximum(defined.sum(axis=1), 1), np.nan
        )
        mse = mse_map[:, chosen].mean(axis=1), mse_other[:, chosen].mean(axis=1)
        result[name] = np.column_stack(
            [
                _nanmean(r_map[:, chosen].T),
                _nanmean(r_other[:, chosen].T),
                _nanmean(difference.T),
                *mse,
                mse[1] - mse[0],
                better,
            ]
        )
    return result


def _moments(own: Compared, weights: Values, columns: slice, block: NDArray[np.intp] | None) -> Values:
    """r of map and other, and their MSEs, of every resample and gene: [4, B, g]."""
    t, m, o = (values[:, columns] for values in (own.truth, own.map, own.other))
    constant = [(v == v[:1]).all(axis=0) for v in (t, m, o)]
    errors = np.square(m - t), np.square(o - t)
    t, m, o = (v - v.mean(axis=0) for v in (t, m, o))
    sums = np.stack([np.ones_like(t), t, m, o, t * t, m * m, o * o, t * m, t * o, *errors])
    if block is not None:
        starts = np.argsort(block, kind="stable")
        edges = np.searchsorted(block[starts], np.arange(block.max() + 1))
        sums = np.add.reduceat(sums[:, starts], edges, axis=1)
    n, st, sm, so, tt, mm, oo, tm, to, em, eo = (weights @ s for s in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        vt, vm, vo = tt / n - (st / n) ** 2, mm / n - (sm / n) ** 2, oo / n - (so / n) ** 2
        r_map = (tm / n - st * sm / n**2) / np.sqrt(vt * vm)
        r_other = (to / n - st * so / n**2) / np.sqrt(vt * vo)
    for r, flat, variance in ((r_map, constant[1], vm), (r_other, constant[2], vo)):
        # A resample may be constant where the whole is not.
        r[:, flat | constant[0]] = np.nan
        r[(variance <= 1e-14 * variance.max(initial=0)) | (vt <= 1e-14 * vt.max(initial=0))] = np.nan
    return np.stack([r_map, r_other, em / n, eo / n])


def _comparison(values: Values, draws: Values, unit: str, units: int) -> Comparison:
    tail = (1 - LEVEL) / 2
    wider = stdtrit(max(units - 1, 1), 1 - tail) / ndtri(1 - tail) * np.sqrt(units / max(units - 1, 1))
    intervals = []
    for column in (2, 5):
        kept = draws[:, column][np.isfinite(draws[:, column])]
        low, high = np.quantile(kept, [tail, 1 - tail]) if len(kept) else (np.nan, np.nan)
        value = float(values[column])
        intervals.append(Interval(value, value - wider * (value - low), value + wider * (high - value)))
    r_map, r_other, _, mse_map, mse_other, _, better = values.tolist()
    return Comparison(r_map, r_other, mse_map, mse_other, intervals[0], intervals[1], better, unit)


def _nanmean(stack: Values) -> Values:
    """Mean over the first axis without NaN; NaN where all are."""
    defined = ~np.isnan(stack)
    count = defined.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(count > 0, np.where(defined, stack, 0.0).sum(axis=0) / count, np.nan))


def _weighted(drawn: Values, values: Values) -> Values:
    """Means over sections [S, 7] by the weights [B, S] of each resample, without NaN: [B, 7]."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((drawn @ np.where(defined, values, 0.0)) / (drawn @ defined))
