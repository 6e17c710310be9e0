"""Cross-validation of heads on a frozen encoder: features once, then a fit per fold and value."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mclst.benchmarks.accuracy.folds import (
    Fold,
    FoldScores,
    fold_file,
    parse_values,
    read_scores,
    score_rows,
    write_scores,
)
from mclst.runtime.features.cache import FeatureCache
from mclst.sections.accuracy import Score, score
from mclst.training.fitting.features import EncoderSetup, FeatureSource, samples_per_section
from mclst.training.fitting.folds import Block, Folds, make_folds
from mclst.training.fitting.heads import Head, fit_head
from mclst.training.fitting.run import FitOptions, head_features, readable_spots
from mclst.training.fitting.sections import FitSection

SWEPT: dict[str, Callable[[str], Any]] = {"head": str, "alpha": float, "k": int, "context": float}
"""Settings of a head that can be varied; one encoding serves all values. `context` is in µm, 0: none."""

Say = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class HeadSections:
    """Sections with their features, as `read_features` makes them.

    sections: with readable tiles alone. values: float32 [n, features of the encoder] of each.
    """

    setup: EncoderSetup
    genes: tuple[str, ...]
    sections: tuple[FitSection, ...]
    values: tuple[NDArray[np.float32], ...]


def parse_head_sweep(text: str) -> tuple[str, list[Any]]:
    """Parse `head=ridge,knn` into name and values; ValueError."""
    name, parsed = parse_values(text, SWEPT)
    for value in parsed:
        if name == "head" and value not in get_args(Head):
            raise ValueError(f"--sweep {text!r}: {value} is none of {', '.join(get_args(Head))}")
        least = {"alpha": "above 0", "k": "of at least 1", "context": "of at least 0"}.get(name, "")
        if least and not (0 < value < math.inf or (value == 0 and name == "context")):
            raise ValueError(f"--sweep {text!r}: {name} is {value:g}; give values {least}")
    return name, parsed


def with_head_setting(options: FitOptions, name: str, value: Any) -> FitOptions:
    """Copy of `options` with one setting of a sweep; what does not go with a head is left to be chosen."""
    if name == "context":
        return replace(options, context_um=value or None)
    head = replace(options.head, **{name: value})
    if name == "head":
        head = replace(
            head,
            alpha=None if value == "knn" else head.alpha,
            k=head.k if head.retrieves else None,
            weighting=head.weighting if value == "knn" else "uniform",
        )
    return replace(options, head=head)


def read_features(
    sections: Sequence[FitSection],
    genes: Sequence[str],
    setup: EncoderSetup,
    cache: FeatureCache,
    *,
    say: Say,
    progress: Progress,
) -> HeadSections:
    """Encode the sections' tiles, or take their features from the cache of mclst-fit.

    Raises SlideError and ReferenceDataError as mclst-fit does.
    """
    with (
        FeatureSource(setup, cache, say=say) as source,
        progress("tiles", sum(len(section.spot) for section in sections)) as advance,
    ):
        samples = samples_per_section(setup.tile)
        encoded = [source.encode(section, samples, advance) for section in sections]
    kept = [readable_spots(section, own, say) for section, own in zip(sections, encoded, strict=True)]
    return HeadSections(setup, tuple(genes), tuple(s for s, _ in kept), tuple(v for _, v in kept))


def cross_validate_heads(
    data: HeadSections,
    folds: Sequence[Fold],
    group_of: Mapping[str, str],
    variants: Mapping[str, FitOptions],
    work: Path,
    *,
    jobs: int = 1,
    say: Say,
) -> pd.DataFrame:
    """Fit and score every fold under every variant: rows of value, fold, section and MEASURES.

    Nothing is chosen on a section left out: penalty and neighbors come from the folds of the others.

    Parameters
    ----------
    data : HeadSections
    folds : sequence of Fold
    group_of : mapping of section to what is left out with it
        For the choice of penalty and neighbors among the others.
    variants : mapping of value to FitOptions
    work : Path
        Folder of finished folds; the same call goes on from there.
    jobs : int
        Folds at once.
    say : callable
        Called with a line after each fold.

    Raises
    ------
    InputError
        If there are too few spots or sections for a head, or `work` belongs to other settings or sections.
    """
    described = _describe(data, group_of, variants)

    def run_fold(fold: Fold) -> FoldScores:
        file = fold_file(work, "heads", fold.name)
        run = {**described, "left_out": list(fold.left_out)}
        kept = read_scores(file, run)
        if kept is not None:
            say(f"fold {fold.name}: done before")
            return kept
        scored = [_fit_and_score(data, fold, group_of, options) for options in variants.values()]
        rows = [score_rows(fold.left_out, scores) for scores in scored]
        write_scores(file, run, rows)
        means = ", ".join(f"{np.mean([own.pcc_acg for own in scores]):.3f}" for scores in scored)
        say(f"fold {fold.name}: PCC (ACG) {means}")
        return rows

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        results = list(pool.map(run_fold, folds))
    rows = [
        {"value": value, "fold": fold.name, **row}
        for number, value in enumerate(variants)
        for fold, scores in zip(folds, results, strict=True)
        for row in scores[number]
    ]
    return pd.DataFrame(rows)


def _fit_and_score(
    data: HeadSections, fold: Fold, group_of: Mapping[str, str], options: FitOptions
) -> list[Score]:
    x = {
        section.name: head_features(section, values, data.setup, options.context_um)
        for section, values in zip(data.sections, data.values, strict=True)
    }
    y = {section.name: section.expression(options.units) for section in data.sections}
    rest = [section for section in data.sections if section.name not in fold.left_out]
    inner = _inner_folds(rest, group_of)
    parts = [
        (x[rest[block.section].name][block.rows], y[rest[block.section].name][block.rows])
        for block in inner.blocks
    ]
    head = fit_head(parts, inner, options.head)
    return [score(head.predict(x[name]), y[name]) for name in fold.left_out]


def _inner_folds(rest: Sequence[FitSection], group_of: Mapping[str, str]) -> Folds:
    """Groups of the other sections; the sections themselves where there is one group only."""
    names = [section.name for section in rest]
    if len(rest) == 1:
        return make_folds(names, [rest[0].xy_px])
    groups = [group_of[name] for name in names]
    if len(set(groups)) == 1:
        groups = names
    blocks = (
        Block(i, np.arange(len(s.spot)), group) for i, (s, group) in enumerate(zip(rest, groups, strict=True))
    )
    return Folds(tuple(blocks), "")


def _describe(
    data: HeadSections, group_of: Mapping[str, str], variants: Mapping[str, FitOptions]
) -> dict[str, Any]:
    """Plain values that decide the scores of a fold."""
    digests = {}
    for section, values in zip(data.sections, data.values, strict=True):
        digest = hashlib.sha256("\n".join(section.spot).encode())
        totals = section.totals
        for array in (values, section.counts, totals.spot, totals.gene, section.xy_px):
            digest.update(np.ascontiguousarray(array).data)
        digest.update(f"{totals.measured_genes} {totals.median}".encode())
        digests[section.name] = digest.hexdigest()
    settings = {
        value: {
            "head": options.head.head,
            "alpha": options.head.alpha,
            "k": options.head.k,
            "weighting": options.head.weighting,
            "units": options.units,
            "context_um": options.context_um,
        }
        for value, options in variants.items()
    }
    described = {
        "encoder": {**data.setup.recipe.record(), "weights": data.setup.weights_sha256},
        "views": list(data.setup.views),
        "mpp": data.setup.mpp,
        "genes": hashlib.sha256("\n".join(data.genes).encode()).hexdigest(),
        "groups": dict(group_of),
        "variants": settings,
        "data": digests,
    }
    # A round trip through JSON, as the file makes it.
    return dict(json.loads(json.dumps(described)))
