"""Which sections trained the model, and their measurements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mclst.evaluation.baselines.measured_section import MeasuredSection, read_measured
from mclst.evaluation.baselines.stain import Stain, read_stain
from mclst.runtime.bundle.bank import Bank
from mclst.runtime.bundle.bundle import Bundle, open_bundle
from mclst.runtime.errors import SlideError, SpotsError
from mclst.runtime.section_options import SectionFiles
from mclst.sections.errors import SectionError
from mclst.sections.formats.reference import choose_sections, find_sections
from mclst.sections.patients import known_patients

MOST_VALUES = 400_000_000
"""Values of expression held at most, 1.6 GB each of counts and expression; sections beyond are not read."""
MOST_TILES = 400
"""Tiles read at most of a training section; three covariates need no more."""
MOST_TEST_TILES = 5000
"""Tiles read at most of a section of the test; it is compared with the stain baseline at these spots."""
MOST_IMAGES = 12


@dataclass(frozen=True)
class TrainingData:
    """What the maps' model was made of, as far as it is known.

    Attributes
    ----------
    names : tuple of str
        Training sections, those of the test included if they are among them.
    how : str
        Where the names come from, for the reader.
    sure : bool
        False if they are all other sections of the truth, for want of anything better.
    sections : tuple of MeasuredSection
        Those at hand, without the sections of the test.
    tests : mapping of name to MeasuredSection
    patients : mapping of section to patient
    bank : Bank or None
    sentences : str or None
        Of the bank.
    notes : tuple of str
        What could not be used, and why.
    """

    names: tuple[str, ...]
    how: str
    sure: bool
    sections: tuple[MeasuredSection, ...]
    tests: Mapping[str, MeasuredSection]
    patients: Mapping[str, str]
    bank: Bank | None = None
    sentences: str | None = None
    notes: tuple[str, ...] = field(default=())

    def relatives(self, test: str) -> list[str]:
        """Training sections of the same patient as a test section, without it."""
        patient = self.patients.get(test)
        return [
            n for n in self.names if patient is not None and n != test and self.patients.get(n) == patient
        ]


def gather_training(
    truth: Path,
    tested: Collection[str],
    genes: Sequence[str],
    normalization: str,
    *,
    training: str | None = None,
    reference: Path | None = None,
    bundle: Path | None = None,
    patient: str | None = None,
    files: SectionFiles | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> TrainingData:
    """Find and read the training sections.

    Parameters
    ----------
    truth : Path
        Measured sections.
    tested : collection of str
        Sections that maps are of.
    genes : sequence of str
        Of the maps.
    normalization : str
        Of the maps.
    training : str, optional
        Names and ranges, such as "A2-G3". Default: the bundle's training sections and bank, else all other
        sections.
    reference : Path, optional
        Folder of the training sections, if it is not `truth`.
    bundle : Path, optional
        The bundle that made the maps.
    patient : str, optional
        Regular expression for the patient in a section's name.
    files : SectionFiles, optional
        Slides, gene names and bins of both.
    advance : callable
        Called with 1 after each section.

    Returns
    -------
    TrainingData

    Raises
    ------
    SectionError
        If a named section does not exist, a test section is damaged, or a name does not match `patient`.
    BundleError
        If the bundle is damaged.
    """
    files = files or SectionFiles()
    sources, of_test = (find_sections(folder, files.bins) for folder in (reference or truth, truth))
    sources = files.give(sources, [reference or truth], of_test)
    of_test = files.give(of_test, [truth], sources)
    bank, sentences, names = None, None, None
    how, sure = f"all that {truth} has besides, for the real ones are not known", False
    if bundle is not None:
        opened = open_bundle(bundle)
        bank = opened.bank if opened.manifest.kind == "retrieval" else None
        known, place = _training_sections(opened)
        if known:
            names, how, sure = known, f"the {place} of {bundle}", True
        if bank is not None:
            sentences = None if opened.manifest.context is None else opened.manifest.context.sentences
    if training is not None:
        names, how, sure = choose_sections(sources, training), f"--training {training}", True
    if names is None:
        names = [name for name in sources if name not in tested]
    notes, sections, values = [], [], 0
    for name in names:
        if name in tested or name not in sources:
            continue
        if values > MOST_VALUES:
            notes.append(f"training sections from {name} on are not read, for they would not fit memory")
            break
        try:
            sections.append(read_measured(sources[name], genes, normalization))
        except SectionError as error:
            notes.append(f"training section {name} is left out ({str(error).split(';')[0]})")
            continue
        values += sections[-1].expression.size
        advance(1)
    tests = {name: read_measured(of_test[name], genes, normalization) for name in tested}
    patients = known_patients([*dict.fromkeys((*names, *tested))], patient)
    return TrainingData(
        tuple(names), how, sure, tuple(sections), tests, patients, bank, sentences, tuple(notes)
    )


def _training_sections(bundle: Bundle) -> tuple[list[str], str]:
    """Sections of a bundle's bank and those of its training, and where it names them."""
    manifest, calibration = bundle.manifest, bundle.calibration
    bank = [rows.name for rows in manifest.bank]
    names = list(dict.fromkeys([*bank, *manifest.trained_on]))
    fitted = manifest.kind == "regression" and manifest.encoder.prediction_dim > 0
    if not names and fitted and calibration is not None and calibration.kind == "section":
        # A fit before `trained_on` was recorded: each of its sections was left out once.
        return [*calibration.group], "calibration"
    return names, "bank" if len(names) == len(bank) else "manifest"


def read_stains(
    data: TrainingData, mpp: float | None, *, advance: Callable[[int], None] = lambda n: None
) -> tuple[dict[str, Stain], list[str]]:
    """Stain of the test sections' tiles and of some of the training sections', and what could not be read.

    mpp: µm per px of the slides. Training sections of a test's patient come first.
    """
    relatives = {name for test in data.tests for name in data.relatives(test)}
    usable = [s for s in data.sections if s.image is not None and s.xy_px is not None]
    usable.sort(key=lambda section: section.name not in relatives)
    stains, notes = {}, []
    for section in (*data.tests.values(), *usable[:MOST_IMAGES]):
        if section.image is None or section.xy_px is None:
            continue
        most = MOST_TEST_TILES if section.name in data.tests else MOST_TILES
        kept = np.unique(np.linspace(0, len(section) - 1, min(len(section), most)).astype(np.intp))
        xy_px = np.full_like(section.xy_px, np.nan)
        xy_px[kept] = section.xy_px[kept]
        try:
            stains[section.name] = read_stain(section.image, xy_px, section.image_mpp(mpp))
        except (SlideError, SpotsError) as error:
            notes.append(f"the image of {section.name} is not used ({str(error).split(';')[0]})")
        advance(1)
    return stains, notes
