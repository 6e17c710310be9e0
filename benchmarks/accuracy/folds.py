"""Folds of a cross-validation: what is left out together, the scores that are kept, and their summary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mclst.benchmarks.harness.undefined import none_if_undefined
from mclst.runtime.atomic import write_atomically
from mclst.runtime.errors import InputError
from mclst.sections.accuracy import Score
from mclst.sections.patients import PATIENT, known_patients, patient_of
from mclst.training.training_state import upgrade_keys

MEASURES = ("pcc_acg", "pcc_heg", "mse", "mae")

FoldScores = list[list[dict[str, Any]]]
"""Of one fold: per value of the sweep, a row of `section` and MEASURES for each section left out."""


@dataclass(frozen=True)
class Fold:
    """Sections left out together: one, or all of one patient."""

    name: str
    left_out: tuple[str, ...]


def default_unit(names: Sequence[str], patient: str = PATIENT) -> str:
    """Choose the unit of a fold: "patient" where every name tells one and there are several."""
    known = known_patients(names, None if patient == PATIENT else patient)
    return "patient" if len(known) == len(names) and len(set(known.values())) > 1 else "section"


def make_folds(names: Sequence[str], leave_out: str, patient: str) -> list[Fold]:
    """Leave out each section, or each patient's sections; `patient` is a regular expression for the name.

    Its first group, or its match, names the patient. Raises InputError where a name does not match, or a fold
    would leave nothing to train on.
    """
    if leave_out == "section":
        folds = [Fold(name, (name,)) for name in names]
    else:
        by_patient: dict[str, list[str]] = {}
        for name in names:
            by_patient.setdefault(patient_of(name, patient), []).append(name)
        folds = [Fold(name, tuple(sections)) for name, sections in by_patient.items()]
    if len(folds) < 2:
        raise InputError(
            f"all of {', '.join(names)} would be left out together; give sections of two patients or more"
        )
    return folds


def parse_values(text: str, kinds: Mapping[str, Callable[[str], Any]]) -> tuple[str, list[Any]]:
    """Parse `k=50,100,200` into name and values, with the type of each name; ValueError."""
    name, _, values = text.partition("=")
    if name not in kinds or not values:
        raise ValueError(f"--sweep {text!r}: give NAME=VALUE,VALUE,… with one of {', '.join(kinds)}")
    try:
        return name, [kinds[name](value) for value in values.split(",")]
    except ValueError as error:
        raise ValueError(f"--sweep {text!r}: {error}") from error


def fold_file(work: Path, label: str, fold: str) -> Path:
    """File of a fold's scores in the folder `work`; label: of what is scored."""
    plain = (re.sub(r"[^A-Za-z0-9.-]", "_", part) for part in (label, fold))
    return work / f"{'.'.join(plain)}.json"


def read_scores(file: Path, run: Mapping[str, Any]) -> FoldScores | None:
    """Return the scores that `write_scores` kept of this run; None if there are none.

    Raises InputError if they belong to another run, or the file is damaged.
    """
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kept, scores = upgrade_keys(content.get("run")), content["scores"]
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{file} holds no scores of a fold; delete it, or give another --work") from error
    if kept != run:
        raise InputError(f"{file} belongs to other settings or sections; give another --work, or delete it")
    return list(scores)


def write_scores(file: Path, run: Mapping[str, Any], scores: FoldScores) -> None:
    """Keep a fold's scores; run: plain values, all that they depend on. Raises OutputError."""
    write_atomically(file, (json.dumps({"run": run, "scores": scores}, indent=1) + "\n").encode())


def score_rows(names: Sequence[str], scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Rows of `section` and MEASURES; an undefined score is None."""
    return [
        {"section": name, **{m: none_if_undefined(getattr(score, m)) for m in MEASURES}}
        for name, score in zip(names, scores, strict=True)
    ]


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation over the folds, one row per value.

    A fold's score is the mean of its sections. An undefined score makes its fold's and the mean undefined.
    """
    numbers = rows.astype(dict.fromkeys(MEASURES, float))
    summary = []
    for value, of_value in numbers.groupby("value", sort=False):
        folds = [of_fold[list(MEASURES)].to_numpy() for _, of_fold in of_value.groupby("fold", sort=False)]
        means = np.stack([of_fold.mean(axis=0) for of_fold in folds])
        line: dict[str, Any] = {"value": value, "folds": len(means)}
        for measure, of_folds in zip(MEASURES, means.T, strict=True):
            line[measure] = float(of_folds.mean())
            line[f"{measure}_sd"] = float(of_folds.std(ddof=1)) if len(means) > 1 else float("nan")
        summary.append(line)
    return pd.DataFrame(summary)
