"""All baselines of a section, from its training sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.evaluation.baselines.measured_section import MeasuredSection
from mclst.evaluation.baselines.positions import nearest_spots, smooth_field, training_mean
from mclst.evaluation.baselines.stain import NAMES, Stain

MEAN, PATIENT, FIELD = "training mean", "patient's mean", "smooth field"
NEAREST, STAIN = "nearest spots", "stain and nuclei"
SEES = {
    MEAN: "nothing of the section",
    PATIENT: "which patient it is",
    FIELD: "the spots' positions",
    NEAREST: "the spots' positions",
    STAIN: f"{NAMES[0]}, {NAMES[1]} and nuclei density of the tile",
}
"""What each baseline sees of the section."""

Predict = Callable[
    [Sequence[MeasuredSection], MeasuredSection], tuple[NDArray[np.float64] | None, str] | None
]
"""A baseline: training sections and the section → expression [n, G] and a remark, or None and why not.

None alone where the section lacks what the baseline sees.
"""


@dataclass(frozen=True)
class Baseline:
    """A baseline's prediction of a section.

    sees: what it sees of the section. made_of: sections and settings. expression: float64 [n, G], NaN rows
    where it predicts nothing; None if it cannot be made, and then made_of says why.
    """

    name: str
    sees: str
    made_of: str
    expression: NDArray[np.float64] | None


def predict_baselines(
    training: Sequence[MeasuredSection],
    section: MeasuredSection,
    *,
    relatives: Sequence[str] = (),
    stains: Mapping[str, Stain] | None = None,
    further: Mapping[str, tuple[str, Predict]] | None = None,
) -> list[Baseline]:
    """Predict a section by every baseline.

    Parameters
    ----------
    training : sequence of MeasuredSection
        At least one.
    section : MeasuredSection
    relatives : sequence of str
        Training sections of the same patient. Positions mean the same place only there, so if there are any,
        baselines by position use them alone.
    stains : mapping of section to Stain, optional
    further : mapping of name to (what it sees, Predict), optional

    Returns
    -------
    list of Baseline
    """
    near = [s for s in training if s.name in set(relatives)] or list(training)
    mean = np.tile(training_mean(training), (len(section), 1))
    baselines = [Baseline(MEAN, SEES[MEAN], _listing(training), mean)]
    if 0 < len(near) < len(training):
        own = np.tile(training_mean(near), (len(section), 1))
        baselines.append(Baseline(PATIENT, SEES[PATIENT], _listing(near), own))
    predictors: dict[str, tuple[str, Predict, Sequence[MeasuredSection]]] = {
        FIELD: (SEES[FIELD], smooth_field, near),
        NEAREST: (SEES[NEAREST], nearest_spots, near),
    }
    for name, (sees, predict, sections) in predictors.items():
        baselines.append(_made(name, sees, predict(sections, section), sections, "no positions"))
    baselines.append(_by_stain(training, section, stains or {}))
    for name, (sees, predict) in (further or {}).items():
        expression, remark = predict(training, section) or (None, f"for section {section.name}")
        made_of = remark if expression is not None else f"not made: {remark}"
        baselines.append(Baseline(name, sees, made_of, expression))
    return baselines


def regress_on(
    training: Sequence[tuple[NDArray[np.float64], NDArray[np.float32]]], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares from covariates, standardized within each section, to expression.

    training: covariates [n, C] and expression [n, G] of each section. values: float64 [n, C] of the section
    to predict. Rows with a NaN are left out of the fit, and are NaN.
    """
    rows = [_standardize(own) for own, _ in training]
    present = [np.isfinite(own).all(axis=1) for own in rows]
    x = np.concatenate([own[keep] for own, keep in zip(rows, present, strict=True)])
    y = np.concatenate([values[keep] for (_, values), keep in zip(training, present, strict=True)])
    slope = np.linalg.lstsq(np.column_stack([np.ones(len(x)), x]), y.astype(np.float64), rcond=None)[0]
    own = _standardize(values)
    return np.asarray(np.column_stack([np.ones(len(own)), own]) @ slope)


def _by_stain(
    training: Sequence[MeasuredSection], section: MeasuredSection, stains: Mapping[str, Stain]
) -> Baseline:
    known = [s for s in training if s.name in stains]
    if section.name not in stains or not known:
        lacking = f"section {section.name}" if section.name not in stains else "the training sections"
        return Baseline(STAIN, SEES[STAIN], f"not made: no image of {lacking}", None)
    parts = [(stains[s.name].values, s.expression) for s in known]
    return Baseline(STAIN, SEES[STAIN], _listing(known), regress_on(parts, stains[section.name].values))


def _standardize(values: NDArray[np.float64]) -> NDArray[np.float64]:
    deviation = np.nanstd(values, axis=0)
    result: NDArray[np.float64] = (values - np.nanmean(values, axis=0)) / np.where(
        deviation > 0, deviation, 1.0
    )
    return result


def _made(
    name: str,
    sees: str,
    result: tuple[NDArray[np.float64] | None, str] | None,
    sections: Sequence[MeasuredSection],
    lacking: str,
) -> Baseline:
    if result is None:
        return Baseline(name, sees, f"not made: {lacking}", None)
    return Baseline(name, sees, f"{_listing(sections)}; {result[1]}", result[0])


def _listing(sections: Sequence[MeasuredSection]) -> str:
    names = [section.name for section in sections]
    shown = ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])}, … ({len(names)} sections)"
    return shown
