"""The options of `mclst-fit` → sections, encoder and fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mclst.models.recipes.find import find_recipe
from mclst.models.recipes.weights import load_weights
from mclst.runtime.errors import CheckpointError, ReferenceDataError
from mclst.runtime.hashing import file_sha256
from mclst.runtime.section_options import SectionFiles
from mclst.sections.formats.images import missing_image
from mclst.sections.formats.reference import read_section
from mclst.training.fitting.checkpoint import WeightsFile
from mclst.training.fitting.features import EncoderSetup, samples_per_section
from mclst.training.fitting.folds import patient_note
from mclst.training.fitting.heads import HeadOptions
from mclst.training.fitting.run import FitOptions, FitResult, Progress, fit_model
from mclst.training.fitting.sections import FitSection, read_fit_section
from mclst.training.fitting.trident import read_all_features
from mclst.training.sources import find_all_sections, read_genes, split_sections


def fit_from_options(
    paths: tuple[Path, ...],
    section_files: SectionFiles,
    weights: Path,
    genes: Path | None,
    options: dict[str, Any],
    *,
    say: Callable[[str], None],
    progress: Progress,
) -> FitResult:
    """Read sections and weights as the options say, and fit; raises as `fit_model` and the readers do."""
    setup, source = encoder_from_options(weights, options)
    sections, names = read_fit_sections(
        paths, section_files, options["sections"], options["hold_out"], genes, options["mpp"], progress, say
    )
    spots = sum(len(section.spot) for section in sections)
    listed = ", ".join(section.name for section in sections)
    title = setup.recipe.title
    say(f"{spots:,} spots of {listed}; {len(names)} genes; {title}, {setup.tile.size_px} px tiles")
    for note in dict.fromkeys(note for section in sections for note in section.notes):
        say(f"Note: {note}")
    if note := patient_note([section.name for section in sections], options["groups"]):
        say(f"Note: {note}")
    features = None
    if options["from_features"]:
        samples = samples_per_section(setup.tile)
        features = read_all_features(options["from_features"], sections, setup, samples)
    return fit_model(
        sections,
        names,
        setup,
        source,
        fit_options(options),
        features=features,
        say=say,
        progress=progress,
    )


def encoder_from_options(weights: Path, options: dict[str, Any]) -> tuple[EncoderSetup, WeightsFile]:
    """Read the encoder's weights; raises CheckpointError if they are not its own."""
    recipe = find_recipe(options["encoder"])
    # The hash comes first: a folder of weights has none of its own.
    state = load_weights(recipe, weights)
    source = WeightsFile(weights.name, _sha256(weights), included=not options["weights_by_reference"])
    setup = EncoderSetup(
        recipe,
        state,
        tuple(float(view) for view in options["views"]),
        recipe.mpp if options["tile_mpp"] is None else options["tile_mpp"],
        options["provider"],
        options["batch_size"],
        options["workers"],
    )
    return setup, source


def fit_options(options: dict[str, Any]) -> FitOptions:
    """Return what to fit, besides the encoder, as the options say."""
    return FitOptions(
        HeadOptions(options["head"], options["alpha"], options["k"], options["weighting"]),
        options["units"],
        options["context"],
        options["groups"],
        not options["no_cache"],
    )


def read_fit_sections(
    paths: tuple[Path, ...],
    section_files: SectionFiles,
    chosen: str | None,
    hold_out: tuple[str, ...],
    genes: Path | None,
    mpp: float | None,
    progress: Progress,
    say: Callable[[str], None],
) -> tuple[list[FitSection], list[str]]:
    """Read the chosen sections of all paths; also return the genes, which all of them have."""
    sources, _ = split_sections(find_all_sections(paths, section_files), chosen, hold_out, ())
    sections: list[FitSection] = []
    names: list[str] = []
    with progress("sections", len(sources)) as advance:
        for source in sources:
            if source.image is None:
                raise ReferenceDataError(missing_image(source))
            section = read_section(source)
            names = names or read_genes(paths, genes, section, say)
            sections.append(read_fit_section(section, names, mpp))
            advance(1)
    return sections, names


def _sha256(path: Path) -> str:
    """SHA-256 of a file of weights; "" of a folder, whose tensors are hashed instead."""
    try:
        return file_sha256(path) if path.is_file() else ""
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); check --weights"
        ) from error
