"""Sections and a frozen encoder → a fitted model, judged on sections it has not seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mclst.models.fitted import base_view
from mclst.runtime.errors import ReferenceDataError, SlideError
from mclst.runtime.features.cache import FeatureCache
from mclst.runtime.slide.open import open_slide
from mclst.runtime.trust.calibration import stain_values
from mclst.runtime.trust.places import read_stain
from mclst.sections.accuracy import Score, score
from mclst.training.checkpoint import PARITY_TILES
from mclst.training.fitting.checkpoint import FittedModel, WeightsFile, joined
from mclst.training.fitting.features import EncoderSetup, FeatureSource, TileFeatures, samples_per_section
from mclst.training.fitting.folds import Folds, make_folds
from mclst.training.fitting.heads import FittedHead, HeadOptions, check_enough, fit_head
from mclst.training.fitting.sections import FitSection, neighbor_means

Say = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
SCALES_DIFFER = 1.05
"""Ratio of µm/px from which sections are said to be of different scale."""


@dataclass(frozen=True)
class FitOptions:
    """What to fit, besides the encoder.

    head: of `fit_head`. units: of the expression, one of NORMALIZATIONS. context_um: radius whose spots' mean
    features join a spot's own; None: none. groups: see `make_folds`. cache: whether
    features are kept in the user's cache, and kept ones are used.
    """

    head: HeadOptions = field(default_factory=HeadOptions)
    units: str = "gene-wise"
    context_um: float | None = None
    groups: str | Path | None = None
    cache: bool = True


@dataclass(frozen=True)
class FitResult:
    """A fitted model; scores: of each section, predicted without its fold. provider: "" if all was cached."""

    model: FittedModel
    scores: Mapping[str, Score]
    provider: str
    encoded: int
    seconds: Mapping[str, float]


def fit_model(
    sections: Sequence[FitSection],
    genes: Sequence[str],
    setup: EncoderSetup,
    weights: WeightsFile,
    options: FitOptions,
    *,
    features: Mapping[str, TileFeatures] | None = None,
    say: Say = lambda text: None,
    progress: Progress = lambda title, total: nullcontext(lambda n: None),
) -> FitResult:
    """Encode the sections, fit a head, and predict each section without it.

    Parameters
    ----------
    sections : sequence of FitSection
    genes : sequence of str
        Of the sections' counts, G.
    setup : EncoderSetup
    weights : WeightsFile
    options : FitOptions
    features : mapping of str to TileFeatures, optional
        Of every section by name, in place of encoding.
    say, progress : callable
        For the user.

    Raises
    ------
    InputError, ReferenceDataError, SlideError, CheckpointError
    """
    started = time.perf_counter()
    check_scales(sections, setup, options, say)
    names = [section.name for section in sections]
    # Refused before the encoder takes its time.
    check_enough(make_folds(names, [section.xy_px for section in sections], options.groups), options.head)
    samples = samples_per_section(setup.tile)
    provider, encoded = "", 0
    if features is None:
        cache = FeatureCache.of_user() if options.cache else FeatureCache(0)
        with FeatureSource(setup, cache, say=say) as source:
            with progress("tiles", sum(len(section.spot) for section in sections)) as advance:
                features = {section.name: source.encode(section, samples, advance) for section in sections}
            provider, encoded = source.provider, source.encoded
    kept = [readable_spots(section, features[section.name], say) for section in sections]
    seconds = {"features": time.perf_counter() - started}
    values = [head_features(section, rows, setup, options.context_um) for section, rows in kept]
    expression = [section.expression(options.units) for section, _ in kept]
    folds = make_folds(names, [section.xy_px for section, _ in kept], options.groups)
    parts = [
        (values[block.section][block.rows], expression[block.section][block.rows]) for block in folds.blocks
    ]
    with progress("folds", len(folds.names)) as advance:
        head = fit_head(parts, folds, options.head, advance)
    scores = score_sections(head, folds, parts, names)
    seconds["fit"] = time.perf_counter() - started - seconds["features"]
    model = FittedModel(
        setup=setup,
        head=head,
        folds=folds,
        sections=tuple(names),
        spots=tuple(tuple(kept[b.section][0].spot[row] for row in b.rows) for b in folds.blocks),
        truth=tuple(part[1] for part in parts),
        genes=tuple(str(gene) for gene in genes),
        units=options.units,
        context_um=options.context_um,
        weights=weights,
        record={
            **_record(head, options, folds, scores, {s.name: len(s.spot) for s, _ in kept}),
            "stain": measure_stains(sections, say),
        },
        tiles=_parity_tiles([features[name].sample for name in names]),
    )
    return FitResult(model, scores, provider, encoded, seconds)


def measure_stains(sections: Sequence[FitSection], say: Say) -> list[list[float]]:
    """`stain_values` of the sections' slides, so that a map can tell whether its colors are like theirs."""
    stains = []
    for section in sections:
        try:
            with open_slide(section.image) as slide:
                stain = read_stain(slide, section.xy_px)
        except SlideError as error:
            say(f"Note: the stain of section {section.name} is not measured ({error})")
            continue
        if stain is not None:
            stains.append(stain_values(stain))
    return stains


def _parity_tiles(samples: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """At most PARITY_TILES of all sections' sample tiles, evenly."""
    tiles = np.concatenate(samples)
    if not len(tiles):
        return tiles
    return tiles[np.unique(np.linspace(0, len(tiles) - 1, PARITY_TILES).round().astype(np.int64))]


def score_sections(
    head: FittedHead, folds: Folds, parts: Sequence[tuple[Any, Any]], names: Sequence[str]
) -> dict[str, Score]:
    """Score each section's out-of-fold predictions, as mclst-eval scores a map."""
    scores = {}
    for which, name in enumerate(names):
        numbers = [i for i, block in enumerate(folds.blocks) if block.section == which]
        truth = np.concatenate([parts[number][1] for number in numbers])
        scores[name] = score(joined(head.out_of_fold, numbers), truth)
    return scores


def readable_spots(
    section: FitSection, features: TileFeatures, say: Say
) -> tuple[FitSection, NDArray[np.float32]]:
    """Keep a section's spots whose tile could be read, and their features.

    Raises ReferenceDataError if fewer than two are left, or all have the same features.
    """
    rows = np.array([row for row in range(len(section.spot)) if row not in features.failed], np.int64)
    if features.failed:
        row, reason = next(iter(features.failed.items()))
        say(
            f"Note: {len(features.failed)} spots of {section.name} have no readable tile and are left out "
            f"(first {section.spot[row]}: {reason})"
        )
    if len(rows) < 2:
        raise ReferenceDataError(
            f"section {section.name} has {len(rows)} spots with a readable tile; a fit needs two or more: "
            "check its image"
        )
    values = features.values[rows]
    if (values == values[0]).all():
        raise ReferenceDataError(
            f"section {section.name}: {section.image.name} looks the same under all its {len(rows)} spots; "
            f"give its slide with --image {section.name}=SLIDE"
        )
    return section.take(rows), values


def head_features(
    section: FitSection, values: NDArray[np.float32], setup: EncoderSetup, context_um: float | None
) -> NDArray[np.float32]:
    """Join what a head sees, float32 [n, F]: a spot's features and, with a context, its neighbors' mean.

    values: float32 [n, features of the encoder]. context_um: radius; None: no context.
    """
    if context_um is None:
        return values
    width, base = setup.recipe.width, base_view(setup.views)
    assert section.mpp is not None
    near = neighbor_means(
        values[:, base * width : (base + 1) * width], section.xy_px, context_um / section.mpp
    )
    return np.concatenate([values, near], 1)


def check_scales(sections: Sequence[FitSection], setup: EncoderSetup, options: FitOptions, say: Say) -> None:
    """Say what the tiles' scale is; ReferenceDataError if a context needs one that is not known."""
    unknown = next((section for section in sections if section.mpp is None), None)
    if unknown is not None and options.context_um is not None:
        raise ReferenceDataError(
            f"{unknown.image} does not say how large its pixels are, and --context is in µm; give --mpp, the "
            "µm per pixel of the images"
        )
    known = [section.mpp for section in sections if section.mpp is not None]
    if setup.mpp is None and known and max(known) > SCALES_DIFFER * min(known):
        say(
            f"Note: the images have {min(known):.3g} to {max(known):.3g} µm per px, and tiles are level-0 "
            "px; give --tile-mpp, so that all tiles show the same field of view"
        )
    elif setup.mpp is None and known:
        say(
            f"Note: tiles are level-0 px, here of {float(np.mean(known)):.3g} µm; slides of another scale "
            "need a model fitted with --tile-mpp"
        )


def _record(
    head: FittedHead,
    options: FitOptions,
    folds: Folds,
    scores: Mapping[str, Score],
    spots: Mapping[str, int],
) -> dict[str, Any]:
    return {
        "head": options.head.head,
        "k": None if head.retrieval is None else head.retrieval.k,
        "weighting": None if head.retrieval is None else head.retrieval.weighting,
        "sections": dict(spots),
        "scores": {name: score_record(item) for name, item in scores.items()},
        "held_out": folds.names,
    }


def score_record(item: Score) -> dict[str, float | None]:
    """Plain values of a score; None where one is undefined."""
    values = {name: getattr(item, name) for name in ("pcc_acg", "pcc_heg", "mse", "mae")}
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}
