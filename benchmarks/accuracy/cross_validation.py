"""Cross-validation: train without some sections, score them, vary one setting; resumable."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mclst.benchmarks.accuracy.exported import score_precisions
from mclst.runtime.atomic import write_atomically
from mclst.runtime.bundle.manifest import Settings
from mclst.runtime.choices import PRECISIONS
from mclst.runtime.errors import InputError
from mclst.sections.patients import patient_of
from mclst.training.contrastive import Training
from mclst.training.data import TrainingSection
from mclst.training.settings import TrainConfig
from mclst.training.training_state import (
    delete_state,
    describe_run,
    resume_training,
    upgrade_keys,
    write_state,
)
from mclst.training.validation import score_settings

MEASURES = ("pcc_acg", "pcc_heg", "mse", "mae")
TRAINED = {"positions": str, "encoder": str, "lambda": float}
"""Settings that need a training per value."""
EXPORTED = {"precision": str}
"""Settings of the exported graph; one training serves all values."""
RETRIEVED = {"k": int, "distance": str, "rank": str, "weighting": str, "normalization": str, "context": int}
"""Settings of scoring; one training serves all values. `normalization` applies to prediction and truth."""


@dataclass(frozen=True)
class Fold:
    """Sections left out together: one, or all of one patient."""

    name: str
    left_out: tuple[str, ...]


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


def parse_sweep(text: str) -> tuple[str, list[Any]]:
    """Parse `k=50,100,200` into name and values; ValueError."""
    name, _, values = text.partition("=")
    kinds = {**TRAINED, **RETRIEVED, **EXPORTED}
    if name not in kinds or not values:
        raise ValueError(f"--sweep {text!r}: give NAME=VALUE,VALUE,… with one of {', '.join(kinds)}")
    try:
        return name, [kinds[name](value) for value in values.split(",")]
    except ValueError as error:
        raise ValueError(f"--sweep {text!r}: {error}") from error


def with_setting(config: TrainConfig, name: str, value: Any) -> TrainConfig:
    """Copy of `config` with one setting of a sweep; ValueError where the value is invalid."""
    settings = config.settings.model_dump(mode="json")
    paths = {
        "k": ("retrieval", "k"),
        "distance": ("retrieval", "distance"),
        "rank": ("retrieval", "rank"),
        "weighting": ("retrieval", "weighting"),
        "normalization": ("normalization", "expression"),
        "context": ("context", "spots"),
    }
    if name in paths:
        section, field = paths[name]
        settings[section][field] = value
        return dataclasses.replace(config, settings=Settings.model_validate_json(json.dumps(settings)))
    if name == "lambda":
        return dataclasses.replace(config, image_weight=value)
    if name == "encoder":
        return dataclasses.replace(config, encoder=value)
    if name == "precision":
        if value not in PRECISIONS:
            raise ValueError(f"{value} is none of {', '.join(PRECISIONS)}")
        return config
    unit = config.settings.context.positions
    settings["context"]["positions"] = "none" if value == "none" else "pixel" if unit == "pixel" else "array"
    with_positions = Settings.model_validate_json(json.dumps(settings))
    return dataclasses.replace(config, positions=value, settings=with_positions)


def cross_validate(
    sections: Sequence[TrainingSection],
    folds: Sequence[Fold],
    config: TrainConfig,
    sweep: tuple[str, list[Any]] | None,
    work: Path,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """Train and score every fold under every value of the sweep: rows of value, fold, section and MEASURES.

    The folder `work` has finished folds and the state of an unfinished one; the same call resumes from there.
    Raises InputError where it belongs to other settings or sections.
    """
    name, values = sweep or ("", [""])
    configs = [with_setting(config, name, value) if name else config for value in values]
    # One training serves all values of a setting outside TRAINED.
    groups = [[i] for i in range(len(values))] if name in TRAINED else [list(range(len(values)))]
    rows: list[dict[str, Any]] = []
    for group in groups:
        for fold in folds:
            label = f"{name}-{values[group[0]]}" if name in TRAINED else "all"
            file = work / f"{re.sub(r'[^A-Za-z0-9.-]', '_', label)}.{fold.name}.json"
            precisions = values if name in EXPORTED else None
            scored = _run_fold(sections, fold, [configs[i] for i in group], precisions, file, say)
            for i, scores in zip(group, scored, strict=True):
                rows += [{"value": str(values[i]), "fold": fold.name, **score} for score in scores]
    return pd.DataFrame(rows)


def _run_fold(
    sections: Sequence[TrainingSection],
    fold: Fold,
    configs: Sequence[TrainConfig],
    precisions: Sequence[str] | None,
    file: Path,
    say: Callable[[str], None],
) -> list[list[dict[str, Any]]]:
    training_sections = [section for section in sections if section.name not in fold.left_out]
    held_out = [section for section in sections if section.name in fold.left_out]
    scoring = {
        "held_out": describe_run(configs[0], held_out, {})["data"],
        "scored": [config.settings.model_dump(mode="json") for config in configs],
        **({} if precisions is None else {"precisions": list(precisions)}),
    }
    run = describe_run(configs[0], training_sections, scoring)
    if file.exists():
        content = json.loads(file.read_text())
        if upgrade_keys(content.get("run")) != run:
            raise InputError(
                f"{file} belongs to other settings or sections; give another --work, or delete it"
            )
        say(f"fold {fold.name}: done before")
        return list(content["scores"])
    training = Training(training_sections, configs[0])
    resume_training(file, training, scoring)
    while not training.finished:
        training.run_epoch()
        write_state(file, training, scoring)
    if precisions is None:
        scored = score_settings(training, held_out, [config.settings for config in configs])
    else:
        scored = score_precisions(training, held_out, precisions)
    scores = [
        [
            {"section": section.name, **{m: _finite(getattr(score, m)) for m in MEASURES}}
            for section, score in zip(held_out, section_scores, strict=True)
        ]
        for section_scores in scored
    ]
    write_atomically(file, (json.dumps({"run": run, "scores": scores}, indent=1) + "\n").encode())
    delete_state(file)
    chance = math.log(len(training.pairs) / training.steps_per_epoch)
    say(f"fold {fold.name}: loss {training.losses[-1]:.3f} (chance {chance:.2f}), {training.seconds:.0f} s")
    return scores


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
