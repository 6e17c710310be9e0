"""Does the test stand apart from training? The same patient, section, spots or tiles on both sides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mclst.evaluation.baselines.measured_section import MeasuredSection
from mclst.evaluation.baselines.stain import Stain
from mclst.runtime.bundle.bank import Bank

SAME_ROW = 0.995
"""Correlation from which on two spots' expression, or two tiles, count as one; real neighbors stay below."""
LEAST_VARIED = 8
"""Values above the row's least that a row needs, since near-empty spots resemble each other."""
LEAST_CONTRAST = 4.0
"""Standard deviation, in gray levels, that a tile needs to be told from others."""
MOST_COMPARED = 1000
"""Spots of the test that are compared, spread evenly."""
LEAST_BETWEEN = 10
"""Pairs of sections of different patients that it takes to know how alike patients are."""
FEW, MANY = 0.02, 0.5
"""Shares of the compared spots above which equals are no chance, and from which on a section is a copy."""


@dataclass(frozen=True)
class Leak:
    """Something of the test that training has seen.

    severity: "leak" inflates the scores; "note" may. section: of the test. text: one sentence.
    """

    severity: str
    section: str
    text: str


def find_leaks(
    test: MeasuredSection,
    training: Sequence[MeasuredSection],
    *,
    genes: Sequence[str],
    names: Sequence[str],
    patients: Mapping[str, str],
    sure: bool,
    bank: Bank | None = None,
    sentences: str | None = None,
    stains: Mapping[str, Stain] | None = None,
) -> list[Leak]:
    """Check one test section against what the model was made of.

    Parameters
    ----------
    test : MeasuredSection
    training : sequence of MeasuredSection
        Those training sections whose files are at hand.
    genes : sequence of str
        Columns of the sections.
    names : sequence of str
        All training sections, of bank or training.
    patients : mapping of section to patient
        For sections whose patient is known.
    sure : bool
        Whether these are known to be the training sections; if not, what they share is a note.
    bank : Bank, optional
        Of the bundle that made the map.
    sentences : str, optional
        "file" if the bank's sentences run over section borders.
    stains : mapping of section to Stain, optional
        Tiles, to recognize one image under two names.

    Returns
    -------
    list of Leak
    """
    severity = "leak" if sure else "note"
    leaks = []
    if test.name in names:
        leaks.append(Leak("leak", test.name, f"section {test.name} itself is among the training sections"))
    if bank is not None:
        leaks += _bank_spots(test, bank, {s.name for s in training}, genes)
    leaks += _copies(test, training, severity)
    if stains is not None:
        leaks += _copied_tiles(test, [s.name for s in training], stains, severity)
    patient = patients.get(test.name)
    same = [
        name for name in names if patient is not None and patients.get(name) == patient and name != test.name
    ]
    if same:
        leaks.append(Leak(severity, test.name, _same_patient(test, training, same, str(patient))))
    leaks += _similar(test, training, patients)
    if sentences == "file" and same:
        text = (
            "the bank's sentences run over section borders: spots of one section are encoded with spots of "
            "another; export with --sentences section"
        )
        leaks.append(Leak("note", test.name, text))
    return leaks


def duplicate_rows(test: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether each row of `test` [n, G] has an equal in `other` [m, G], up to scale and shift: bool [n].

    Rows with too few different values equal none.
    """
    a, b = _unit_rows(test), _unit_rows(other)
    result = np.zeros(len(a), np.bool_)
    for start in range(0, len(b), 4096):
        result |= (a @ b[start : start + 4096].T >= SAME_ROW).any(axis=1)
    return result


def _unit_rows(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    values = np.asarray(rows, np.float32)
    varied = (values > values.min(axis=1, keepdims=True)).sum(axis=1) >= min(
        LEAST_VARIED, values.shape[1] - 1
    )
    centered = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(
        varied[:, None] & (length > 0), centered / np.where(length > 0, length, 1), 0
    )
    return unit


def _spread(count: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, count - 1, min(count, MOST_COMPARED)).astype(np.intp))


def _bank_spots(
    test: MeasuredSection, bank: Bank, at_hand: Collection[str], genes: Sequence[str]
) -> list[Leak]:
    """Spots of the test in the bank: by section and spot name, or by their expression."""
    named = np.isin(bank.spot[bank.section == test.name], test.spot)
    if named.any():
        text = f"{np.count_nonzero(named)} of its {len(test)} spots are in the bundle's bank"
        return [Leak("leak", test.name, text)]
    column_of = {gene: i for i, gene in enumerate(bank.genes.tolist())}
    if not all(gene in column_of for gene in genes):
        return []
    columns = [column_of[gene] for gene in genes]
    own = test.expression[_spread(len(test))]
    leaks = []
    for name in np.unique(bank.section).tolist():
        if name not in at_hand:
            share = float(duplicate_rows(own, bank.expression[bank.section == name][:, columns]).mean())
            leaks += _copied(test, name, share, "expression", "leak")
    return leaks


def _copies(test: MeasuredSection, training: Sequence[MeasuredSection], severity: str) -> list[Leak]:
    rows = _spread(len(test))
    leaks = []
    for section in training:
        if section.name == test.name:
            continue
        share = float(duplicate_rows(np.log1p(test.counts[rows]), np.log1p(section.counts)).mean())
        leaks += _copied(test, section.name, share, "counts", severity)
    return leaks


def _copied(test: MeasuredSection, name: str, share: float, what: str, severity: str) -> list[Leak]:
    if share >= MANY:
        text = f"training section {name} is a copy of it: {share:.0%} of its spots have equal {what} there"
    elif share > FEW:
        text = f"{share:.0%} of its spots have a spot of equal {what} in training section {name}"
    else:
        return []
    return [Leak(severity, test.name, text)]


def _copied_tiles(
    test: MeasuredSection, training: Sequence[str], stains: Mapping[str, Stain], severity: str
) -> list[Leak]:
    if test.name not in stains:
        return []
    own = _contrasted(stains[test.name])
    leaks = []
    for name in training:
        if name == test.name or name not in stains or not len(own):
            continue
        share = float(duplicate_rows(own[_spread(len(own))], _contrasted(stains[name])).mean())
        if share > FEW:
            text = f"{share:.0%} of its tiles are nearly equal to tiles of training section {name}"
            leaks.append(Leak(severity, test.name, text))
    return leaks


def _contrasted(stain: Stain) -> NDArray[np.float32]:
    tiles = stain.descriptor[np.isfinite(stain.descriptor).all(axis=1)]
    return np.asarray(tiles[tiles.std(axis=1) >= LEAST_CONTRAST], np.float32)


def _same_patient(
    test: MeasuredSection, training: Sequence[MeasuredSection], same: Sequence[str], patient: str
) -> str:
    listing = ", ".join(same[:6]) + (", …" if len(same) > 6 else "")
    likeness = [_correlation(test.profile, s.profile) for s in training if s.name in same]
    profile = f", with summed expression as similar as r = {max(likeness):.2f}" if likeness else ""
    return (
        f"training has {len(same)} other section{'s' if len(same) > 1 else ''} of patient {patient} by name "
        f"({listing}){profile}"
    )


def _similar(
    test: MeasuredSection, training: Sequence[MeasuredSection], patients: Mapping[str, str]
) -> list[Leak]:
    """Sections that resemble the test more than any two training sections of different patients do."""
    known = [s for s in training if s.name in patients]
    between = [
        _correlation(a.profile, b.profile)
        for i, a in enumerate(known)
        for b in known[:i]
        if patients[a.name] != patients[b.name]
    ]
    if len(between) < LEAST_BETWEEN:
        return []
    leaks = []
    for section in training:
        if section.name == test.name or patients.get(section.name) == patients.get(test.name, test.name):
            continue
        likeness = _correlation(test.profile, section.profile)
        if likeness > max(between):
            text = (
                f"its summed expression resembles training section {section.name}'s (r = {likeness:.3f}) "
                f"more than any two patients resemble each other ({max(between):.3f} at most): one patient?"
            )
            leaks.append(Leak("note", test.name, text))
    return leaks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
