"""Run a task's folds, each kept when it is done."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mclst.benchmarks.harness.undefined import none_if_undefined
from mclst.benchmarks.leaderboard.samples import (
    Sample,
    encode_patches,
    find_embeddings,
    find_prediction,
    read_embeddings,
    read_prediction,
    read_sample,
)
from mclst.benchmarks.leaderboard.score import fit_and_predict, score_fold, summarize
from mclst.benchmarks.leaderboard.tasks import Task
from mclst.runtime.atomic import write_atomically
from mclst.runtime.encoder.session import Session
from mclst.training.fitting.ridge import BENCHMARK_COMPONENTS


@dataclass(frozen=True)
class Entry:
    """What is ranked: predictions, or a head on embeddings or on an encoder's features.

    fingerprint: what tells one entry from another, for kept folds. session, size_px: of the encoder.
    """

    name: str
    fingerprint: str
    predictions: Path | None = None
    embeddings: Path | None = None
    session: Session | None = None
    size_px: int = 0
    components: int = BENCHMARK_COMPONENTS
    alpha: float | None = None


def run_task(
    task: Task, entry: Entry, work: Path, *, jobs: int = 1, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Score every fold of a task; folds in `work` of the same task and entry are taken from there.

    Parameters
    ----------
    task : Task
    entry : Entry
    work : Path
        Folder of finished folds and cached features.
    jobs : int
        Folds at once.
    say : callable
        Called with a line after each fold.

    Returns
    -------
    dict
        `folds`, and their summary.

    Raises
    ------
    InputError
        If a file is missing, damaged or does not fit.
    """
    if entry.session is not None:  # one after the other, as an encoder serves one caller
        for sample in dict.fromkeys(s for train, test in task.folds for s in (*train, *test)):
            _features(task, entry, work, sample)
    numbers = range(len(task.folds))
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        folds = list(pool.map(lambda number: _run_fold(task, entry, work, number, say), numbers))
    return {"folds": folds, **summarize(folds)}


def _run_fold(
    task: Task, entry: Entry, work: Path, number: int, say: Callable[[str], None]
) -> dict[str, Any]:
    train, test = task.folds[number]
    settings = {
        "task": task.name,
        "genes": list(task.genes),
        "train": list(train),
        "test": list(test),
        "entry": entry.fingerprint,
        "components": entry.components,
        "alpha": entry.alpha,
        "files": _files(task, entry, number),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    file = work / f"{_plain(task.name)}.fold_{number}.{key}.json"
    if file.is_file():
        say(f"{task.name}, fold {number}: done before")
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {name: _number(value) for name, value in content.items()}
    if entry.predictions is not None:
        paths = [find_prediction(entry.predictions, task, number, sample) for sample in test]
        held = [read_prediction(path, task, sample) for path, sample in zip(paths, test, strict=True)]
        predicted = [sample.features for sample in held]
    else:
        parts: dict[str, Sample] = {
            sample: read_sample(task, sample, lambda name: _features(task, entry, work, name))
            for sample in (*train, *test)
        }
        held = [parts[sample] for sample in test]
        predicted = fit_and_predict([parts[s] for s in train], held, entry.components, entry.alpha)
    result = score_fold(task.protocol, predicted, held, task.genes)
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(none_if_undefined(result), indent=1) + "\n").encode())
    say(f"{task.name}, fold {number}: mean r {result['pcc']:.4f} on {', '.join(test)}")
    return result


def _files(task: Task, entry: Entry, number: int) -> list[list[Any]]:
    """Path, size and time of the files that a fold is made of; a changed one makes it anew."""
    train, test = task.folds[number]
    paths = [task.expression[sample] for sample in (*train, *test)]
    if entry.predictions is not None:
        paths += [find_prediction(entry.predictions, task, number, sample) for sample in test]
    if entry.embeddings is not None:
        paths += [find_embeddings(entry.embeddings, task.name, sample) for sample in (*train, *test)]
    states = [(path, path.stat()) for path in paths if path.is_file()]
    return [[str(path.absolute()), state.st_size, state.st_mtime_ns] for path, state in states]


def _features(task: Task, entry: Entry, work: Path, sample: str) -> Any:
    if entry.session is not None:
        folder = work / "features" / entry.fingerprint[:16] / _plain(task.name)
        return encode_patches(task, sample, entry.session, entry.size_px, folder)
    assert entry.embeddings is not None
    return read_embeddings(entry.embeddings, task.name, sample)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", name)


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _number(own) for name, own in value.items()}
    return np.nan if value is None else value
