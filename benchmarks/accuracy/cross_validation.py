"""Cross-validation of a system: train without some sections, score them, vary one setting; resumable."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mclst.benchmarks.accuracy.exported import score_precisions
from mclst.benchmarks.accuracy.folds import (
    Fold,
    FoldScores,
    fold_file,
    parse_values,
    read_scores,
    score_rows,
    write_scores,
)
from mclst.models.encoders import known_encoder
from mclst.runtime.bundle.manifest import Normalization
from mclst.runtime.choices import PRECISIONS
from mclst.training.contrastive import Training
from mclst.training.data import TrainingSection
from mclst.training.pretrained_weights import StartingWeights
from mclst.training.settings import TrainConfig, valid_settings
from mclst.training.training_state import (
    delete_state,
    describe_run,
    resume_training,
    write_state,
)
from mclst.training.validation import check_neighbors, score_settings

TRAINED = {"positions": str, "encoder": str, "lambda": float}
"""Settings that need a training per value."""
EXPORTED = {"precision": str}
"""Settings of the exported graph; one training serves all values."""
RETRIEVED = {"k": int, "distance": str, "rank": str, "weighting": str, "normalization": str, "context": int}
"""Settings of scoring; one training serves all values. `normalization` applies to prediction and truth."""


def parse_sweep(text: str) -> tuple[str, list[Any]]:
    """Parse `k=50,100,200` into name and values; ValueError."""
    return parse_values(text, {**TRAINED, **RETRIEVED, **EXPORTED})


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
        units = settings["normalization"]
        settings["normalization"] = Normalization.of(units["input"], units["expression"]).model_dump()
        return dataclasses.replace(config, settings=valid_settings(settings))
    if name == "lambda":
        return dataclasses.replace(config, image_weight=value)
    if name == "encoder":
        if config.recipe is not None:
            raise ValueError(f"{config.encoder} has a recipe, and a sweep is over encoders without one")
        if not known_encoder(value):
            raise ValueError("it is no image encoder of mclst or of this timm")
        return dataclasses.replace(config, encoder=value)
    if name == "precision":
        if value not in PRECISIONS:
            raise ValueError(f"{value} is none of {', '.join(PRECISIONS)}")
        return config
    unit = config.settings.context.positions
    settings["context"]["positions"] = "none" if value == "none" else "pixel" if unit == "pixel" else "array"
    return dataclasses.replace(config, positions=value, settings=valid_settings(settings))


def cross_validate(
    sections: Sequence[TrainingSection],
    folds: Sequence[Fold],
    config: TrainConfig,
    sweep: tuple[str, list[Any]] | None,
    work: Path,
    say: Callable[[str], None],
    start: StartingWeights | None = None,
) -> pd.DataFrame:
    """Train and score every fold under every value of the sweep: rows of value, fold, section and MEASURES.

    Each training begins at `start`, else at random weights. The folder `work` has finished folds and the
    state of an unfinished one; the same call resumes from there.
    Raises InputError where it belongs to other settings or sections, or a bank is too small for k.
    """
    name, values = sweep or ("", [""])
    configs = [with_setting(config, name, value) if name else config for value in values]
    # One training serves all values of a setting outside TRAINED.
    groups = [[i] for i in range(len(values))] if name in TRAINED else [list(range(len(values)))]
    for fold in folds:
        spots = sum(len(section.spot) for section in sections if section.name not in fold.left_out)
        for config_of_value in configs:
            check_neighbors(config_of_value.settings, spots)
    rows: list[dict[str, Any]] = []
    for group in groups:
        for fold in folds:
            label = f"{name}-{values[group[0]]}" if name in TRAINED else "all"
            file = fold_file(work, label, fold.name)
            precisions = values if name in EXPORTED else None
            scored = _run_fold(sections, fold, [configs[i] for i in group], precisions, file, say, start)
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
    start: StartingWeights | None,
) -> FoldScores:
    training_sections = [section for section in sections if section.name not in fold.left_out]
    held_out = [section for section in sections if section.name in fold.left_out]
    scoring = {
        "held_out": describe_run(configs[0], held_out, {})["data"],
        "scored": [config.settings.model_dump(mode="json") for config in configs],
        **({} if precisions is None else {"precisions": list(precisions)}),
        **({} if start is None else start.record()),
    }
    run = describe_run(configs[0], training_sections, scoring)
    kept = read_scores(file, run)
    if kept is not None:
        say(f"fold {fold.name}: done before")
        return kept
    training = Training(training_sections, configs[0], None if start is None else start.load)
    resume_training(file, training, scoring)
    while not training.finished:
        training.run_epoch()
        write_state(file, training, scoring)
    if precisions is None:
        scored = score_settings(training, held_out, [config.settings for config in configs])
    else:
        scored = score_precisions(training, held_out, precisions)
    names = [section.name for section in held_out]
    scores = [score_rows(names, of_value) for of_value in scored]
    write_scores(file, run, scores)
    delete_state(file)
    chance = math.log(len(training.pairs) / training.steps_per_epoch)
    say(f"fold {fold.name}: loss {training.losses[-1]:.3f} (chance {chance:.2f}), {training.seconds:.0f} s")
    return scores
