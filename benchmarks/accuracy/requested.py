"""A requested cross-validation: the options of mclst-train or mclst-fit → sections, folds, scores."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import pandas as pd

from mclst.benchmarks.accuracy import cross_validation as cv
from mclst.benchmarks.accuracy.folds import Fold, default_unit, make_folds
from mclst.benchmarks.accuracy.heads import (
    cross_validate_heads,
    parse_head_sweep,
    read_features,
    with_head_setting,
)
from mclst.benchmarks.accuracy.parallel import run_folds
from mclst.benchmarks.accuracy.request import Request
from mclst.runtime.console import progress
from mclst.runtime.features.cache import FeatureCache
from mclst.runtime.section_options import SectionFiles
from mclst.sections.formats.source import SectionSource
from mclst.sections.patients import patient_of
from mclst.training.cli import main as train_command
from mclst.training.data import TrainingSection
from mclst.training.fitting.cli import check_head
from mclst.training.fitting.cli import main as fit_command
from mclst.training.fitting.command import encoder_from_options, fit_options, read_fit_sections
from mclst.training.fitting.run import check_scales
from mclst.training.options import build_config, resolve_options
from mclst.training.pretrained_weights import StartingWeights
from mclst.training.settings import TrainConfig
from mclst.training.sources import find_all_sections, read_genes, read_training_sections, split_sections


@dataclass(frozen=True)
class Result:
    """leave_out: unit of a fold. rows: a row per value, fold and section. record: what was scored."""

    leave_out: str
    rows: pd.DataFrame
    record: dict[str, Any]


def run_system(request: Request, words: str) -> Result:
    """Cross-validate a training run; words: options of mclst-train. Raises as mclst-train does."""
    sweep = _parsed(request.sweep, cv.parse_sweep)
    options = resolve_options(
        train_command.make_context("mclst-train", [*map(str, request.paths), *_split("--train", words)])
    )
    for name in ("validation", "published_layout"):
        if options[name]:
            raise click.UsageError(
                f"--{name.replace('_', '-')} of mclst-train does not go with --train; leave it out"
            )
    config = build_config(options)
    if sweep is not None and sweep[0] == "encoder" and options["init"] is not None:
        raise click.UsageError("--init is of one encoder; give it without --sweep encoder")
    start = StartingWeights(config.encoder, config.recipe, options["init"], options["weights"])
    start.check()
    if sweep is not None:
        for value in sweep[1]:
            try:
                cv.with_setting(config, sweep[0], value)
            except ValueError as error:
                raise click.UsageError(f"--sweep {sweep[0]}={value}: {str(error).splitlines()[0]}") from error
    sources, _ = split_sections(
        find_all_sections(request.paths, _files(options)),
        request.sections or options["sections"],
        options["hold_out"],
        (),
    )
    leave_out, folds = _folds(request, [source.name for source in sources])
    if request.jobs > 1 and len(folds) > 1:
        own = [*map(str, request.paths), "--leave-out", leave_out, "--patient", request.patient]
        own += ["--work", str(request.work), "--train", words]
        own += [] if request.sections is None else ["--sections", request.sections]
        own += [] if request.sweep is None else ["--sweep", request.sweep]
        run_folds([fold.name for fold in folds], own, request.jobs, request.say)
    sections = _training_sections(request, sources, options, config, sweep)
    rows = cv.cross_validate(sections, folds, config, sweep, request.work, request.say, start)
    record = {
        "training": {**config.record(), **start.record()},
        "settings": config.settings.model_dump(mode="json"),
    }
    return Result(leave_out, rows, record)


def run_heads(request: Request, words: str) -> Result:
    """Cross-validate heads; words: options of mclst-fit. Raises as mclst-fit does."""
    sweep = _parsed(request.sweep, parse_head_sweep)
    context = fit_command.make_context("mclst-fit", [*map(str, request.paths), *_split("--fit", words)])
    options: dict[str, Any] = dict(context.params)
    for name in ("from_features", "groups"):
        if options[name]:
            raise click.UsageError(
                f"--{name.replace('_', '-')} of mclst-fit does not go with --fit; leave it out"
            )
    setup, source = encoder_from_options(options["weights"], options)
    base = fit_options(options)
    variants = {"": base}
    if sweep is not None:
        variants = {str(value): with_head_setting(base, sweep[0], value) for value in sweep[1]}
    for variant in variants.values():
        check_head(*(getattr(variant.head, name) for name in ("head", "alpha", "k", "weighting")))
    bars = functools.partial(progress, quiet=request.quiet)
    sections, genes = read_fit_sections(
        request.paths,
        _files(options),
        request.sections or options["sections"],
        options["hold_out"],
        options["genes"],
        options["mpp"],
        bars,
        request.say,
    )
    names = [section.name for section in sections]
    leave_out, folds = _folds(request, names)
    group_of = {name: name if leave_out == "section" else patient_of(name, request.patient) for name in names}
    in_um = [variant for variant in variants.values() if variant.context_um is not None]
    check_scales(sections, setup, next(iter(in_um), base), request.say)
    cache = FeatureCache.of_user() if base.cache else FeatureCache(0)
    data = read_features(sections, genes, setup, cache, say=request.say, progress=bars)
    rows = cross_validate_heads(
        data, folds, group_of, variants, request.work, jobs=request.jobs, say=request.say
    )
    record = {
        "encoder": setup.recipe.record(),
        "weights": {"name": source.name, "tensors_sha256": setup.weights_sha256},
        "views": list(setup.views),
        "head": base.head.head,
        "units": base.units,
        "context_um": base.context_um,
    }
    return Result(leave_out, rows, record)


def _split(option: str, words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError as error:
        raise click.UsageError(
            f"{option} {words!r} cannot be split into words ({error}); correct its quotes"
        ) from error


def _parsed(text: str | None, parse: Callable[[str], tuple[str, list[Any]]]) -> tuple[str, list[Any]] | None:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _files(options: dict[str, Any]) -> SectionFiles:
    return SectionFiles(options["images"], options["hires"], options["gene_aliases"], options["bins"])


def _folds(request: Request, names: Sequence[str]) -> tuple[str, list[Fold]]:
    """Return the unit of a fold, and the folds that are asked for."""
    leave_out = request.leave_out
    if leave_out is None:
        leave_out = default_unit(names, request.patient)
        request.say(f"  leaving one {leave_out} out; --leave-out decides")
    folds = make_folds(names, leave_out, request.patient)
    if unknown := set(request.folds) - {fold.name for fold in folds}:
        raise click.UsageError(f"--fold {min(unknown)} is none of {', '.join(fold.name for fold in folds)}")
    request.open_work()
    return leave_out, [fold for fold in folds if not request.folds or fold.name in request.folds]


def _training_sections(
    request: Request,
    sources: Sequence[SectionSource],
    options: dict[str, Any],
    config: TrainConfig,
    sweep: tuple[str, list[Any]] | None,
) -> list[TrainingSection]:
    needs_array = config.settings.context.positions == "array" or (
        sweep is not None and sweep[0] == "positions"
    )
    with progress("sections", len(sources), quiet=request.quiet) as advance:
        return read_training_sections(
            sources,
            lambda first: read_genes(request.paths, options["genes"], first, request.say),
            config.settings.tile,
            workers=options["workers"],
            slide_mpp=options["mpp"],
            needs_array=needs_array,
            advance=advance,
        )
