"""Cross-validation: train without some sections, score them, vary one setting; resumed where it was stopped."""

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
from mclst.runtime.atomic import write_whole
from mclst.runtime.bundle.bundle import PRECISIONS
from mclst.runtime.bundle.manifest import Settings
from mclst.runtime.errors import InputError
from mclst.training.contrastive import Training
from mclst.training.data import TrainingSection
from mclst.training.settings import TrainConfig
from mclst.training.training_state import describe, forget, take_up, write_state
from mclst.training.validation import score_settings

MEASURES = ("pcc_acg", "pcc_heg", "mse", "mae")
TRAINED = {"positions": str, "encoder": str, "lambda": float}
"""What a network is trained anew for."""
EXPORTED = {"precision": str}
"""What the graph is exported in that one trained network is scored by."""
RETRIEVED = {"k": int, "distance": str, "rank": str, "weighting": str, "normalisation": str, "context": int}
"""What one trained network is scored under; `normalisation` is that of the averaged expression and of the truth."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Fold:
    """Sections left out together: one, or all of one patient."""

    name: str
    left_out: tuple[str, ...]


def make_folds(names: Sequence[str], leave_out: str, patient: str) -> list[Fold]:
    """Leave out each section, or each patient's sections; `patient` is a regular expression found in a section's name.

    The patient is the expression's first group, or all it matches. Raises InputError where a name does not match, or
    one fold would leave nothing to train on.
    """
    if leave_out == "section":
        folds = [Fold(name, (name,)) for name in names]
    else:
        of: dict[str, list[str]] = {}
        for name in names:
            of.setdefault(patient_of(name, patient), []).append(name)
        folds = [Fold(who, tuple(sections)) for who, sections in of.items()]
    if len(folds) < 2:
        raise InputError(
            f"all of {', '.join(names)} would be left out together; give sections of two patients or more"
        )
    return folds


def patient_of(name: str, patient: str) -> str:
    """The patient in a section's name; InputError where the expression does not match."""
    found = re.search(patient, name)
    if found is None:
        raise InputError(f"section {name} does not match --patient {patient!r}; give an expression that does")
    return found[1] if found.re.groups else found[0]


def parse_sweep(text: str) -> tuple[str, list[Any]]:
    """`k=50,100,200` → its name and values; ValueError in a sentence."""
    name, _, values = text.partition("=")
    kinds = {**TRAINED, **RETRIEVED, **EXPORTED}
    if name not in kinds or not values:
        raise ValueError(f"--sweep {text!r}: give NAME=VALUE,VALUE,… with one of {', '.join(kinds)}")
    try:
        return name, [kinds[name](value) for value in values.split(",")]
    except ValueError as error:
        raise ValueError(f"--sweep {text!r}: {error}") from error


def changed(config: TrainConfig, name: str, value: Any) -> TrainConfig:
    """`config` with one setting of a sweep changed. Raises ValueError where the value is not one of its kind."""
    settings = config.settings.model_dump(mode="json")
    place = {
        "k": ("retrieval", "k"),
        "distance": ("retrieval", "distance"),
        "rank": ("retrieval", "rank"),
        "weighting": ("retrieval", "weighting"),
        "normalisation": ("normalisation", "expression"),
        "context": ("context", "spots"),
    }
    if name in place:
        part, field = place[name]
        settings[part][field] = value
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
    of_positions = Settings.model_validate_json(json.dumps(settings))
    return dataclasses.replace(config, positions=value, settings=of_positions)


def cross_validate(
    sections: Sequence[TrainingSection],
    folds: Sequence[Fold],
    config: TrainConfig,
    sweep: tuple[str, list[Any]] | None,
    work: Path,
    say: Say,
) -> pd.DataFrame:
    """Train and score every fold under every value of the sweep: rows of value, fold, section and MEASURES.

    work: a folder that keeps finished folds and the state of an unfinished one. The same call goes on from there.
    Raises InputError where the folder is of other settings or sections.
    """
    name, values = sweep or ("", [""])
    configs = [changed(config, name, value) if name else config for value in values]
    # One training serves all values that retrieval alone needs.
    groups = [[i] for i in range(len(values))] if name in TRAINED else [list(range(len(values)))]
    rows: list[dict[str, Any]] = []
    for group in groups:
        for fold in folds:
            label = f"{name}-{values[group[0]]}" if name in TRAINED else "all"
            file = work / f"{re.sub(r'[^A-Za-z0-9.-]', '_', label)}.{fold.name}.json"
            precisions = values if name in EXPORTED else None
            found = _fold(sections, fold, [configs[i] for i in group], precisions, file, say)
            for i, scores in zip(group, found, strict=True):
                rows += [{"value": str(values[i]), "fold": fold.name, **score} for score in scores]
    return pd.DataFrame(rows)


def _fold(
    sections: Sequence[TrainingSection],
    fold: Fold,
    configs: Sequence[TrainConfig],
    precisions: Sequence[str] | None,
    file: Path,
    say: Say,
) -> list[list[dict[str, Any]]]:
    kept = [section for section in sections if section.name not in fold.left_out]
    held = [section for section in sections if section.name in fold.left_out]
    told = {
        "held_out": describe(configs[0], held, {})["data"],
        "scored": [config.settings.model_dump(mode="json") for config in configs],
        **({} if precisions is None else {"precisions": list(precisions)}),
    }
    run = describe(configs[0], kept, told)
    if file.exists():
        content = json.loads(file.read_text())
        if content.get("run") != run:
            raise InputError(f"{file} is of other settings or sections; give another --work, or delete it")
        say(f"fold {fold.name}: done before")
        return list(content["scores"])
    training = Training(kept, configs[0])
    take_up(file, training, told)
    while not training.finished:
        training.epoch()
        write_state(file, training, told)
    if precisions is None:
        scored = score_settings(training, held, [config.settings for config in configs])
    else:
        scored = score_precisions(training, held, precisions)
    scores = [
        [
            {"section": section.name, **{m: _number(getattr(of, m)) for m in MEASURES}}
            for section, of in zip(held, of_config, strict=True)
        ]
        for of_config in scored
    ]
    write_whole(file, (json.dumps({"run": run, "scores": scores}, indent=1) + "\n").encode())
    forget(file)
    chance = math.log(len(training.pairs) / training.steps_per_epoch)
    say(f"fold {fold.name}: loss {training.losses[-1]:.3f} (chance {chance:.2f}), {training.seconds:.0f} s")
    return scores


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and sample standard deviation over the folds, each the mean of its sections; one row per value.

    An undefined measure of a section makes its fold's undefined, and the mean's.
    """
    numbers = rows.astype(dict.fromkeys(MEASURES, float))
    found = []
    for value, of_value in numbers.groupby("value", sort=False):
        folds = [of_fold[list(MEASURES)].to_numpy() for _, of_fold in of_value.groupby("fold", sort=False)]
        means = np.stack([of_fold.mean(axis=0) for of_fold in folds])
        line: dict[str, Any] = {"value": value, "folds": len(means)}
        for measure, of_folds in zip(MEASURES, means.T, strict=True):
            line[measure] = float(of_folds.mean())
            line[f"{measure}_sd"] = float(of_folds.std(ddof=1)) if len(means) > 1 else float("nan")
        found.append(line)
    return pd.DataFrame(found)
